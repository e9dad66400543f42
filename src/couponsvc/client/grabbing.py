"""The fast client: signed grabs over a few kept-open connections."""

import asyncio
import ssl
from collections import deque
from types import TracebackType
from typing import Final, Self

from couponsvc.client.answers import Answer
from couponsvc.client.connection import Connection, Unreachable, connect, split_url
from couponsvc.client.requests import Request, grab_request, look_up_request
from couponsvc.support.signing import SigningKey

TIMEOUT_S: Final = 10.0
"""Longer than the service ever waits itself (2 s, then 202): past it the answer is lost."""
_SWEEP_EVERY_S: Final = 0.25
"""One timer for all requests in flight instead of one each; a timeout may be late by this."""


class GrabClient:
    """Signs and sends grabs; at most `connections_max_count` at a time, the rest wait their turn.

    Use it as an asynchronous context, or close it. Not for use from several event loops.
    """

    def __init__(
        self,
        base_url: str,
        key: SigningKey,
        *,
        connections_max_count: int = 64,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Make a client; nothing is sent yet. `tls`: where the system's authorities do not suffice.

        Raises:
            ValueError: `base_url` is not `http(s)://host[:port]`.
        """
        self._address = split_url(base_url)
        self._key = key
        self._timeout_s = timeout_s
        self._tls = tls
        self._room = connections_max_count
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._turns: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._sweep: asyncio.TimerHandle | None = None
        self._tail = f"\r\nhost: {self._address.netloc}\r\n".encode()
        self.requests_count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, for good; requests in flight are answered `lost`.

        Whoever still waits for a connection gets `Unreachable`. Every later call raises `RuntimeError`,
        like httpx2's, so that nobody asks a closed client for ever.
        """
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._open):
            connection.abort()
        self._open.clear()
        self._idle.clear()
        for turn in self._turns:
            if not turn.done():
                turn.set_result(None)

    # --- calls --------------------------------------------------------------------------------
    async def grab(
        self,
        drop_id: str,
        person_token: str,
        out_request_no: str,
        *,
        channel: str | None = None,
        region: str | None = None,
        respond_async: bool = False,
    ) -> Answer:
        """Send one grab, once.

        Returns:
            What was answered; `lost` (status 0) where nothing was.

        Raises:
            Unreachable: no connection could be made; nothing was sent.
        """
        return await self.exchange(
            grab_request(
                drop_id,
                person_token,
                out_request_no,
                channel=channel,
                region=region,
                respond_async=respond_async,
            )
        )

    async def look_up(self, drop_id: str, out_request_no: str) -> Answer:
        """Ask what became of a number: `repeated`, `pending` or `unknown_request`.

        Raises:
            Unreachable: no connection could be made.
        """
        return await self.exchange(look_up_request(drop_id, out_request_no))

    async def abandon_grab(self, drop_id: str, person_token: str, out_request_no: str) -> Answer:
        """Send a grab and lose the connection before the answer: a fault, for demos and tests.

        Returns:
            Always `lost`.

        Raises:
            Unreachable: no connection could be made; nothing was sent.
        """
        connection = await self._take()
        self.requests_count += 1
        try:
            return connection.hang_up_after(self.grab_request(drop_id, person_token, out_request_no))
        finally:
            self._give_back(connection)

    def grab_request(
        self,
        drop_id: str,
        person_token: str,
        out_request_no: str,
        *,
        channel: str | None = None,
        region: str | None = None,
        respond_async: bool = False,
    ) -> bytes:
        """Signed bytes of one grab."""
        request = grab_request(
            drop_id, person_token, out_request_no, channel=channel, region=region, respond_async=respond_async
        )
        return self._signed(request)

    async def exchange(self, request: Request) -> Answer:
        """Sign and send any request whose answer is small, once.

        Raises:
            Unreachable: no connection could be made; nothing was sent.
            RuntimeError: the client was closed before.
        """
        signed = self._signed(request)
        connection = await self._take()
        self.requests_count += 1
        try:
            return await connection.exchange(signed)
        finally:
            self._give_back(connection)

    # --- requests and connections -------------------------------------------------------------
    def _signed(self, request: Request) -> bytes:
        body = request.body
        headers = b"".join([b"%b: %b\r\n" % header for header in request.signed_headers(self._key)])
        length = b"content-length: %d\r\n" % len(body) if body else b""
        return b"".join(
            (request.method, b" ", request.target, b" HTTP/1.1", self._tail, headers, length, b"\r\n", body)
        )

    async def _take(self) -> Connection:
        if self._closed:
            raise RuntimeError("the client has been closed")
        while True:
            while self._idle:
                connection = self._idle.pop()
                if connection.usable:
                    return connection
                self._open.discard(connection)
                self._room += 1
            if self._room > 0:
                break
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_next()  # the turn was given to one who no longer wants it
                raise
            self._refuse_if_closed()
        self._room -= 1
        try:
            connection = await connect(self._address, self._timeout_s, self._tls)
            self._refuse_if_closed(connection)
        except BaseException:
            self._room += 1
            self._wake_next()
            raise
        self._open.add(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._abort_overdue)
        return connection

    def _refuse_if_closed(self, connection: Connection | None = None) -> None:
        """End what waited while the client was closed; nobody would close its connection later."""
        if not self._closed:
            return
        if connection is not None:
            connection.abort()
        raise Unreachable(f"{self._address.netloc}: the client was closed meanwhile")

    def _give_back(self, connection: Connection) -> None:
        if connection.usable:
            self._idle.append(connection)
        else:
            self._open.discard(connection)
            self._room += 1
        self._wake_next()

    def _wake_next(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _abort_overdue(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._timeout_s
        for connection in list(self._open):
            if 0.0 < connection.busy_since < oldest:
                connection.abort()
        self._sweep = loop.call_later(_SWEEP_EVERY_S, self._abort_overdue) if self._open else None
