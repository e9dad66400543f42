"""One HTTP/1.1 connection of a lane, as cheap as Python allows: bytes out, httptools' parser in.

The crowd shares its cores with what it measures, so what a request costs here decides how large a
crowd may be: about 20 µs, where locust's session takes 210 (measured on the same machine in one run).
"""

import ssl as plain_ssl
import time
from functools import cache
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import httptools
from gevent import select, socket, ssl  # type: ignore[import-untyped] # gevent ships no types

READ_BYTES: Final = 64 * 1024
BODY_MAX_BYTES: Final = 64 * 1024
"""An answer to a grab is below 2 KiB; a larger one is not from this API."""
STALE_AFTER_S: Final = 0.5
"""A connection that idled for longer is looked at before it is used: the server may have closed it."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    retry_after_s: float


class Lost(OSError):
    """The connection ended, or never was, or did not answer in time: nothing is known."""


@cache
def tls_context() -> plain_ssl.SSLContext:
    """One for all connections of a process, trusting what the system trusts: making one costs ms."""
    context: plain_ssl.SSLContext = ssl.create_default_context()
    return context


def open_socket(parts: SplitResult, timeout_s: float, *, receive_buffer_bytes: int = 0) -> socket.socket:
    """Connect, with TLS where the address says `https`.

    Raises:
        OSError: nobody answers there.
    """
    secure = parts.scheme == "https"
    address = (parts.hostname or "", parts.port or (443 if secure else 80))
    family, kind, protocol, _, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    line = socket.socket(family, kind, protocol)
    try:
        line.settimeout(timeout_s)
        if receive_buffer_bytes:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        line.connect(found)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls_context().wrap_socket(line, server_hostname=address[0]) if secure else line
    except BaseException:
        line.close()
        raise


class Wire:
    """A connection that is opened when it is needed, and again after it was lost."""

    def __init__(self, base_url: str, timeout_s: float) -> None:
        self._parts: Final = urlsplit(base_url)
        self.host: Final = self._parts.netloc
        self._timeout_s: Final = timeout_s
        self._line: socket.socket | None = None
        self._used_s = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._retry_after_s = 0.0
        self._complete = False
        self._stays_open = True

    def exchange(self, request: bytes) -> Answer:
        """Send a request and read its answer.

        A greenlet that is interrupted in here (by a timeout of its own) must `close` afterwards.

        Raises:
            Lost: there was none.
        """
        try:
            line = self._usable() or self._open()
            line.sendall(request)
            while not self._complete:
                data = line.recv(READ_BYTES)
                if not data:
                    raise Lost("closed before the answer was complete")
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            self.close()
            raise Lost(str(error) or type(error).__name__) from error
        self._complete = False
        answer = Answer(self._parser.get_status_code(), self._body, self._retry_after_s)
        if not self._stays_open:
            self.close()
        self._used_s = time.perf_counter()
        return answer

    def close(self) -> None:
        """End the connection; the next request opens another."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _usable(self) -> socket.socket | None:
        line = self._line
        if line is None or time.perf_counter() - self._used_s < STALE_AFTER_S:
            return line
        if select.select([line], [], [], 0)[0]:  # readable without a request: closed by the server
            self.close()
        return self._line

    def _open(self) -> socket.socket:
        self._parser = httptools.HttpResponseParser(self)
        self._complete = False
        line = open_socket(self._parts, self._timeout_s)
        self._line = line
        return line

    # --- httptools ----------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Start a new answer."""
        self._body = b""
        self._retry_after_s = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the one header that a person acts on."""
        if len(name) == 11 and name.lower() == b"retry-after" and value.isdigit():  # noqa: PLR2004
            self._retry_after_s = float(value)

    def on_body(self, body: bytes) -> None:
        """Collect the body; most arrive in one piece."""
        self._body = self._body + body if self._body else body
        if len(self._body) > BODY_MAX_BYTES:
            raise Lost("the answer is too long to be from this API")

    def on_message_complete(self) -> None:
        """The answer is whole; a 1xx is none."""
        self._complete = self._parser.get_status_code() >= 200  # noqa: PLR2004
        self._stays_open = self._parser.should_keep_alive()  # can only be asked in here
