"""The sending side of the open loop: connections that carry one request at a time.

As cheap as Python allows, for it shares the machine with what it measures: one timer for all
requests, no task and no future per request, answers found by looking for two things in their bytes.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

TICK_S: Final = 0.001
"""The event loop's own resolution: requests due within it leave together, up to 1 ms late."""
LATE_MS: Final = 5.0
"""A request written this long after it was due counts as late: several ticks, no rounding."""
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_STATUS: Final = slice(9, 12)
"""Of `HTTP/1.1 201 Created`."""
LOST: Final = 0


class Address(NamedTuple):
    """Where to connect."""

    host: str
    port: int


def split_address(url: str) -> Address:
    """Host and port of `http://host:port`.

    Raises:
        ValueError: it is something else.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise ValueError(f"{url!r} is no address to load; write http://host:port")
    return Address(parts.hostname, parts.port)


class UnreadableAnswer(RuntimeError):
    """An answer without `Content-Length`, or not HTTP/1.1; a run against such a server means nothing."""


class Generator:
    """Requests, their due times (seconds, ascending), and what came of them.

    Attributes:
        latencies_ms: Status → time from due to answered, of every answer after the lead-in.
        lead_in_ms: The same of those due in the lead-in, whatever their status.
        counts: Status → answers, all of them.
        in_time: Status → answers complete before the last request was due.
    """

    def __init__(
        self,
        address: Address,
        requests: Sequence[bytes],
        due_s: Sequence[float],
        *,
        lead_in_s: float = 0.0,
    ) -> None:
        self._lead_in_s: Final = lead_in_s
        self._address: Final = address
        self._requests: Final = requests
        self._due_s: Final = due_s
        self._loop: Final = asyncio.get_running_loop()
        self._done: Final = asyncio.Event()
        self._idle: Final[list[OpenConnection]] = []
        self._open: Final[set[OpenConnection]] = set()
        self._waiting: Final[deque[int]] = deque()
        self._next = 0
        self._started_at = 0.0
        self._settled = 0
        self._closing = False
        self._reconnects: Final[set[asyncio.Task[None]]] = set()
        self._failure: Exception | None = None
        self.sent = 0
        self.late_sends = 0
        self.behind_max_ms = 0.0
        self.latencies_ms: Final[dict[int, list[float]]] = {}
        self.lead_in_ms: Final[list[float]] = []
        self.counts: Final[dict[int, int]] = {}
        self.in_time: Final[dict[int, int]] = {}

    async def connect(self, count: int) -> None:
        """Open connections.

        Raises:
            OSError: one cannot be made.
        """
        for _ in range(count):
            await self._connect_one()

    async def send_all(self, patience_s: float) -> None:
        """Send everything when it is due; return when all is answered or patience is at its end.

        Raises:
            UnreadableAnswer: the server does not answer in a form that is understood here.
        """
        self._started_at = self._loop.time()
        self._tick()
        last_s = self._due_s[-1] if self._due_s else 0.0
        try:
            async with asyncio.timeout(last_s + patience_s):
                await self._done.wait()
        except TimeoutError:
            pass  # what is still open counts as unanswered
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Close every connection."""
        self._closing = True
        for connection in list(self._open):
            connection.abort()
        for task in self._reconnects:
            task.cancel()

    # --- from the timer -----------------------------------------------------------------------
    def _tick(self) -> None:
        if self._closing:
            return
        now_s = self._loop.time() - self._started_at
        place, due_s, count = self._next, self._due_s, len(self._due_s)
        if place < count:
            self.behind_max_ms = max(self.behind_max_ms, (now_s - due_s[place]) * 1e3)
        while place < count and due_s[place] <= now_s:
            self._waiting.append(place)
            place += 1
        self._next = place
        self._send_waiting(now_s)
        if place < count:
            self._loop.call_later(max(TICK_S, due_s[place] - now_s), self._tick)
        self._look_whether_done()

    def _send_waiting(self, now_s: float) -> None:
        waiting, idle = self._waiting, self._idle
        while waiting and idle:
            self._send(idle.pop(), waiting.popleft(), now_s)

    def _send(self, connection: "OpenConnection", place: int, now_s: float) -> None:
        if (now_s - self._due_s[place]) * 1e3 > LATE_MS:
            self.late_sends += 1
        self.sent += 1
        connection.send(place, self._requests[place])

    def _look_whether_done(self) -> None:
        if self._settled == len(self._due_s):
            self._done.set()

    # --- from connections ---------------------------------------------------------------------
    def answered(self, connection: "OpenConnection", place: int, status: int) -> None:
        """Note an answer; the connection takes what waits, at once."""
        now_s = self._loop.time() - self._started_at
        due_s = self._due_s[place]
        self.counts[status] = self.counts.get(status, 0) + 1
        latencies_ms = (
            self.lead_in_ms if due_s < self._lead_in_s else self.latencies_ms.setdefault(status, [])
        )
        latencies_ms.append((now_s - due_s) * 1e3)
        if now_s <= self._due_s[-1]:
            self.in_time[status] = self.in_time.get(status, 0) + 1
        self._settled += 1
        if not connection.usable:
            pass  # `lost` follows
        elif self._waiting:
            self._send(connection, self._waiting.popleft(), now_s)
        else:
            self._idle.append(connection)
        self._look_whether_done()

    def lost(self, connection: "OpenConnection", place: int | None) -> None:
        """Note a lost connection, with the request it carried, and open another."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if place is not None:
            self._settled += 1
        if not self._closing:
            task = self._loop.create_task(self._reconnect())
            self._reconnects.add(task)
            task.add_done_callback(self._reconnects.discard)
        self._look_whether_done()

    def failed(self, failure: Exception) -> None:
        """End the run: answers cannot be read."""
        self._failure = failure
        self._done.set()

    async def _connect_one(self) -> None:
        _, connection = await self._loop.create_connection(
            lambda: OpenConnection(self), self._address.host, self._address.port
        )
        self._open.add(connection)
        self._idle.append(connection)

    async def _reconnect(self) -> None:
        try:
            await self._connect_one()
        except OSError:
            return  # the server refuses or is gone: what is due waits, and counts as unanswered
        self._send_waiting(self._loop.time() - self._started_at)


class OpenConnection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, generator: Generator) -> None:
        self._generator: Final = generator
        self._transport: asyncio.Transport | None = None
        self._place: int | None = None
        self._kept = b""

    @property
    def usable(self) -> bool:
        """Whether a request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, place: int, request: bytes) -> None:
        """Write a request; its answer is told with the same `place`."""
        assert self._transport is not None
        self._place = place
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send small writes at once."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Find out whether the answer is complete."""
        if self._kept:
            data = self._kept + data
        head_end = data.find(_HEAD_END)
        if head_end < 0:
            self._kept = data
            return
        head = data[:head_end].lower()
        at = head.find(_LENGTH)
        if at < 0 or not head.startswith(b"http/1.1 "):
            self._generator.failed(UnreadableAnswer(f"an answer without Content-Length: {head[:60]!r}"))
            self.abort()
            return
        line_end = head.find(b"\r\n", at)
        length = int(head[at + len(_LENGTH) : line_end if line_end > 0 else len(head)])
        if len(data) < head_end + len(_HEAD_END) + length:
            self._kept = data
            return
        self._kept = b""
        place, self._place = self._place, None
        if b"connection: close" in head:
            self.abort()
        if place is not None:
            self._generator.answered(self, place, int(head[_STATUS]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - given by asyncio
        """Tell that no answer will come."""
        self._transport = None
        place, self._place = self._place, None
        self._generator.lost(self, place)
