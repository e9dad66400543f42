"""One HTTP/1.1 keep-alive connection, one request at a time, as cheap as Python allows.

A load generator shares the machine with what it measures, so this is a bare
`asyncio.Protocol` with httptools' response parser: no pool logic, no header objects, no task
per request. A request is bytes made by the caller; the answer arrives in a future.
"""

import asyncio
import ssl
from time import time_ns
from typing import Final, cast
from urllib.parse import SplitResult, urlsplit

import httptools

from couponsvc.client.answers import NO_ANSWER, Answer

BODY_MAX_BYTES: Final = 64 * 1024
"""An answer to a grab is below 2 KiB; a larger one is not from this API."""


class Unreachable(ConnectionError):
    """No connection could be made; nothing was sent, so nothing can have been granted."""


class Connection(asyncio.Protocol):
    """A connection. `busy_since` is the loop time of the request in flight, 0 when idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._retry_after_s: float | None = None
        self._sent_ns = 0
        self.busy_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self._transport is not None and self._waiting is None and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> Answer:
        """Send a request and wait for its answer; it is `lost` if the connection ends before."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return NO_ANSWER
        assert self._waiting is None, "one request at a time"  # noqa: S101
        waiting: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting = waiting
        self.busy_since = self._loop.time()
        self._sent_ns = time_ns()
        transport.write(request)
        try:
            return await waiting
        except asyncio.CancelledError:
            self.abort()  # the answer to come would be taken for the next request's
            raise

    def hang_up_after(self, request: bytes) -> Answer:
        """Send a request and close without reading: what a client does that loses the network."""
        if self._transport is None:
            return NO_ANSWER
        self._sent_ns = time_ns()
        self._transport.write(request)
        self._transport.close()
        return self._lost()

    def abort(self) -> None:
        """Give up: the answer that somebody waits for is lost."""
        if self._transport is not None:
            self._transport.abort()
        self._settle(self._lost())

    def close(self) -> None:
        """Close in order."""
        if self._transport is not None:
            self._transport.close()

    def _lost(self) -> Answer:
        return Answer(0, b"", sent_ns=self._sent_ns, settled_ns=time_ns())

    def _settle(self, answer: Answer) -> None:
        waiting, self._waiting = self._waiting, None
        self.busy_since = 0.0
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    # --- asyncio.Protocol ---------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is no HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - given by asyncio
        """Tell whoever waits that no answer will come."""
        self._transport = None
        self._settle(self._lost())

    # --- httptools ----------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Start a new answer."""
        self._body = b""
        self._retry_after_s = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the one header that a grab's caller acts on."""
        if len(name) == 11 and name.lower() == b"retry-after" and value.isdigit():  # noqa: PLR2004
            self._retry_after_s = float(value)

    def on_body(self, body: bytes) -> None:
        """Collect the body; most arrive in one piece."""
        self._body = self._body + body if self._body else body
        if len(self._body) > BODY_MAX_BYTES:
            self.abort()

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        if self._parser.get_status_code() < 200:  # noqa: PLR2004 - 1xx: the answer is still to come
            return
        if not self._parser.should_keep_alive():
            self.close()
        status = self._parser.get_status_code()
        answer = Answer(status, self._body, self._retry_after_s, sent_ns=self._sent_ns, settled_ns=time_ns())
        self._settle(answer)


def split_url(base_url: str) -> SplitResult:
    """Parts of the service's address.

    Raises:
        ValueError: not an `http://` or `https://` address with a host and nothing after it.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ValueError(f"{base_url!r} is no address of a service; write http://host:port")
    return parts


async def connect(parts: SplitResult, timeout_s: float, tls: ssl.SSLContext | None = None) -> Connection:
    """Open a connection; `tls` replaces the system's authorities for `https`.

    Raises:
        Unreachable: nobody listens there, or not in time.
    """
    loop = asyncio.get_running_loop()
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                lambda: Connection(loop), host, port, ssl=(tls or True) if parts.scheme == "https" else None
            )
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"{host}:{port} cannot be reached: {error}") from error
    return connection
