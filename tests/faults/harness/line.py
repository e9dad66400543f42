"""One proxied connection: two flows of bytes, each with its own delay, pace and cut."""

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, cast

from tests.faults.harness.toxic import Toxic, Way

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no patience: closing sends RST."""
HELD_MAX_BYTES: Final = 4 * 1024 * 1024
"""A flow that holds back more stops reading, and its sender feels it, as with full buffers of a network."""
PIECE_MAX_BYTES: Final = 16 * 1024
"""A paced flow sends no larger pieces, so that its pace is even."""

Loop = asyncio.AbstractEventLoop


class Held(NamedTuple):
    """Something on its way: bytes, the orderly end (empty bytes) or a reset (None)."""

    due_s: float
    content: bytes | None


class Flow:
    """What goes one way. Keeps order whatever happens; the end of the stream waits its turn like bytes."""

    def __init__(
        self, way: Way, toxic_now: Callable[[], Toxic], loop: Loop, on_end: Callable[[], None]
    ) -> None:
        self._way: Final = way
        self._on_end: Final = on_end
        self._toxic_now: Final = toxic_now
        self._loop: Final = loop
        self._held: deque[Held] = deque()
        self._held_bytes_count = 0
        self._last_due_s = 0.0
        self._free_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.source: asyncio.Transport | None = None
        self.target: asyncio.Transport | None = None
        self._source_waits = False
        self._target_full = False
        self._dropped = False
        self.ended = False

    def take(self, content: bytes | None) -> None:
        """Something arrived from the source."""
        if self._dropped:
            return
        toxic = self._toxic_now()
        delay_s = toxic.delay_s(self._way, random.random())  # noqa: S311 - a delay is no secret
        plain = not delay_s and not toxic.cuts(self._way) and not toxic.rate(self._way)
        if plain and not self._held and self._can_send():
            self._send(content)
            return
        self._last_due_s = max(self._last_due_s, self._loop.time() + delay_s)
        self._held.append(Held(self._last_due_s, content))
        self._held_bytes_count += len(content or b"")
        if self._held_bytes_count > HELD_MAX_BYTES:
            self._hold_source()
        self.look()

    def look(self) -> None:
        """Send what is due; called again by itself when more is, and whenever the toxic changes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._held and self._can_send():
            toxic = self._toxic_now()
            if toxic.cuts(self._way):
                return
            now_s = self._loop.time()
            ready_at_s = max(self._held[0].due_s, self._free_at_s)
            if ready_at_s > now_s:
                self._timer = self._loop.call_at(ready_at_s, self.look)
                return
            self._pass_on(toxic.rate(self._way), now_s)
        if not self._held:
            self._release_source()

    def hasten(self) -> None:
        """What waits was delayed by a toxic that is gone: it is due now."""
        now_s = self._loop.time()
        self._held = deque(Held(min(held.due_s, now_s), held.content) for held in self._held)
        self._last_due_s = self._free_at_s = 0.0
        self.look()

    def full(self, *, full: bool) -> None:
        """The target takes no more for now, or takes more again."""
        self._target_full = full
        if full:
            self._hold_source()
        else:
            self.look()

    def drop(self) -> None:
        """The target is gone: forget what is held and what may still come."""
        self._dropped = True
        if self._timer is not None:
            self._timer.cancel()
        self._held.clear()

    def _can_send(self) -> bool:
        return self.target is not None and not self._target_full

    def _pass_on(self, rate: int, now_s: float) -> None:
        held = self._held.popleft()
        content = held.content
        if content and rate and len(content) > (most := max(1, min(PIECE_MAX_BYTES, rate // 10))):
            self._held.appendleft(Held(held.due_s, content[most:]))
            content = content[:most]
        if content and rate:
            self._free_at_s = now_s + len(content) / rate
        self._held_bytes_count -= len(content or b"")
        self._send(content)

    def _send(self, content: bytes | None) -> None:
        target = self.target
        if target is None or target.is_closing():
            return
        if content is None:
            reset(target)
        elif content:
            target.write(content)
        else:
            target.write_eof()
            self.ended = True
            self._on_end()

    def _hold_source(self) -> None:
        if self.source is not None and not self._source_waits and not self.source.is_closing():
            self._source_waits = True
            self.source.pause_reading()

    def _release_source(self) -> None:
        if self.source is not None and self._source_waits and not self._target_full:
            self._source_waits = False
            if not self.source.is_closing():
                self.source.resume_reading()


class End(asyncio.Protocol):
    """One end of a line: gives to one flow what it reads, and tells the other when it can take no more."""

    def __init__(self, outgoing: Flow, incoming: Flow, on_open: Callable[[], None]) -> None:
        self._outgoing: Final = outgoing
        self._incoming: Final = incoming
        self._on_open: Final = on_open
        self._ended = False
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = opened = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        opened.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outgoing.source = opened
        self._incoming.target = opened
        self._on_open()
        self._incoming.look()

    def data_received(self, data: bytes) -> None:
        self._outgoing.take(data)

    def eof_received(self) -> bool:
        self._ended = True
        self._outgoing.take(b"")
        return True  # the other way may still have something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._incoming.target = None
        self._incoming.drop()
        self._outgoing.source = None
        if exc is not None or not self._ended:
            self._outgoing.take(None)

    def pause_writing(self) -> None:
        self._incoming.full(full=True)

    def resume_writing(self) -> None:
        self._incoming.full(full=False)


class Line:
    """A client's connection and ours to the server behind it."""

    def __init__(self, toxic_now: Callable[[], Toxic], loop: Loop, on_open: Callable[["Line"], None]) -> None:
        """`on_open` hears of the client's arrival; it connects `server`."""
        self._up: Final = Flow(Way.UP, toxic_now, loop, self._close_if_ended)
        self._down: Final = Flow(Way.DOWN, toxic_now, loop, self._close_if_ended)
        self.client: Final = End(self._up, self._down, partial(on_open, self))
        self.server: Final = End(self._down, self._up, _connected)

    @property
    def over(self) -> bool:
        """Whether nothing is left of it."""
        return self.client.lost and (self.server.lost or self.server.transport is None)

    def hasten(self) -> None:
        """The toxic changed: what was held back because of it goes on."""
        self._up.hasten()
        self._down.hasten()

    def reset(self) -> None:
        """RST to both sides, now."""
        for flow in (self._up, self._down):
            flow.drop()
        for end in (self.client, self.server):
            if end.transport is not None:
                reset(end.transport)

    def _close_if_ended(self) -> None:
        if self._up.ended and self._down.ended:
            for end in (self.client, self.server):
                if end.transport is not None:
                    end.transport.close()


def reset(transport: asyncio.Transport) -> None:
    """Close so that the other side gets RST and not an orderly end."""
    if transport.is_closing():
        return
    with suppress(OSError):  # it was reset by the other side meanwhile
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()


def _connected() -> None:
    """Nobody waits for the connection to the server."""
