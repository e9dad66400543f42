"""One HTTP/1.1 connection to a receiver that nobody vouches for: a request, then its answer's status.

What is received is counted, parsed and forgotten; only the status is kept.
"""

import asyncio
from typing import Final, cast

import httptools

_FINAL_MIN: Final = 200
"""Statuses below announce another answer to the same request (RFC 9110 §15.2)."""
_DELIMITERS: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Without one of them an answer ends where the connection does (RFC 9112 §6.3)."""


class Broken(Exception):
    """No complete answer. The text is for people and has nothing of the receiver's in it."""


class Connection(asyncio.Protocol):
    """A connection, plain or TLS. One request at a time.

    Args:
        answer_max_bytes: Of one answer, its head included; a longer one is cut.
    """

    def __init__(self, answer_max_bytes: int) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._answer_max_bytes: Final = answer_max_bytes
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[int] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._received_bytes = 0
        self._status: int | None = None
        self._delimited = False
        self._complete = False
        self.made_s: Final = self._loop.time()
        self.reusable = False
        """Whether another request may follow the last one."""

    @property
    def answer_began(self) -> bool:
        """Something of the present or last answer was received."""
        return self._received_bytes > 0

    async def exchange(self, head: bytes, body: bytes) -> int:
        """Send a request and wait for its whole answer; its status.

        Close the connection where this raises, also for being cancelled.

        Raises:
            Broken: the connection ended or was not HTTP/1.1.
        """
        self.reusable = False
        self._parser = httptools.HttpResponseParser(self)
        self._received_bytes = 0
        self._status = None
        self._complete = False
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Broken("the connection was closed")
        assert self._waiting is None, "one request at a time"  # noqa: S101
        self._waiting = self._loop.create_future()
        transport.writelines((head, body))
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def close(self) -> None:
        """End it at once, whatever is under way."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands; with TLS, the certificate was accepted."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Count and parse; what comes unasked ends the connection."""
        if self._waiting is None or self._waiting.done():
            self.close()
            return
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the receiver changed the protocol")
            return
        except httptools.HttpParserError:
            if not self._complete:
                self._fail("the answer is not HTTP/1.1")
                return
            self.reusable = False  # something followed the answer
        if self._complete:
            self._finish()
        elif self._received_bytes > self._answer_max_bytes:
            if self._status is None:
                self._fail("the head of the answer is too long")
            else:
                self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more can come."""
        self.reusable = False
        if self._waiting is None or self._waiting.done():
            return
        if self._status is not None and not self._delimited and exc is None:
            self._finish()
        elif self.answer_began:
            self._fail("the answer broke off")
        else:
            self._fail("the receiver closed the connection without an answer")

    def _finish(self) -> None:
        waiting, status, transport = self._waiting, self._status, self._transport
        assert waiting is not None, "an answer was waited for"  # noqa: S101
        assert status is not None, "it began"  # noqa: S101
        assert transport is not None, "over a connection"  # noqa: S101
        if transport.get_write_buffer_size():
            self.reusable = False  # answered before it had heard all
        waiting.set_result(status)

    def _fail(self, reason: str) -> None:
        assert self._waiting is not None, "an answer was waited for"  # noqa: S101
        self._waiting.set_exception(Broken(reason))

    # --- httptools, of one answer -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; a second one was not asked for."""
        self._delimited = False
        if self._complete:
            self.reusable = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        """Only how the answer ends matters."""
        if name.lower() in _DELIMITERS:
            self._delimited = True

    def on_headers_complete(self) -> None:
        """The status is known."""
        status = self._parser.get_status_code()
        if status >= _FINAL_MIN and not self._complete:
            self._status = status

    def on_message_complete(self) -> None:
        """The answer, or an announcement of it, is whole."""
        if self._status is not None and not self._complete:
            self._complete = True
            self.reusable = self._parser.should_keep_alive()
