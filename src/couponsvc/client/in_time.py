"""Requests that end in time, blocking and asynchronous.

httpx2 bounds each read, not all of them together: a peer that sends a byte now and then holds a call for
as long as it likes. Here every wait on the network of a blocking client gets what is left of the request's
time, and an asynchronous request is ended from outside. httpcore2 is what httpx2 itself is built on; its
network is public and may be replaced.
"""

import asyncio
import contextlib
import math
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final

import httpcore2
import httpx2

# One request is sent by one thread from beginning to end, so the thread's context knows its time.
_ends_at_s: Final[ContextVar[float]] = ContextVar("ends_at_s", default=math.inf)
_NOT_SENT: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout)
_BROKEN: Final = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError)
# What httpx2 tells its `trace`, in this order.
_CONNECTED: Final = "connection.connect_tcp.complete"
_SHOOK_HANDS: Final = "connection.start_tls.complete"
_SENDING: Final = "http11.send_request_headers.started"


@contextlib.contextmanager
def within(timeout_s: float) -> Iterator[None]:
    """Whatever this thread sends in this block through an `InTime` must be over within the time."""
    token = _ends_at_s.set(monotonic() + timeout_s)
    try:
        yield
    finally:
        _ends_at_s.reset(token)


class InTime(httpx2.BaseTransport):
    """Sends requests, each `within` its time: its head and body both, whatever pace they come at.

    Args:
        tls: Whom to trust.
        connections_max_count: At most so many at a time.
        keep_alive_s: How long a silent connection is kept.
    """

    def __init__(self, tls: ssl.SSLContext, connections_max_count: int, keep_alive_s: float) -> None:
        self._pool: Final = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_connections=connections_max_count,
            keepalive_expiry=keep_alive_s,
            network_backend=_Network(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the whole answer.

        Raises:
            httpx2.ConnectError: there was no connection in time; nothing was sent.
            httpx2.ReadError: there was no complete answer in time.
        """
        url = request.url
        try:
            answered = self._pool.request(
                request.method,
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.read(),
                extensions=request.extensions,
            )
        except _NOT_SENT as error:
            raise httpx2.ConnectError(str(error)) from error
        except _BROKEN as error:
            raise httpx2.ReadError(str(error)) from error
        return httpx2.Response(answered.status, headers=answered.headers, content=answered.content)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


async def request_in_time(
    http: httpx2.AsyncClient,
    timeout_s: float,
    **prepared: Any,  # noqa: ANN401 - httpx2's
) -> httpx2.Response:
    """Send a request of an asynchronous client and read the whole answer.

    Args:
        http: Sends it.
        timeout_s: For everything, waiting for a connection included.
        **prepared: As `httpx2.AsyncClient.request` has them.

    Raises:
        httpx2.ConnectError: there was no connection in time; nothing was sent.
        httpx2.ReadError: there was no complete answer in time.
    """
    progress = _Progress()
    try:
        async with asyncio.timeout(timeout_s):
            # None of httpx2's own beside it: two that end in one turn of the loop could cancel the caller.
            return await http.request(**prepared, timeout=None, extensions={"trace": progress.note})
    except (httpx2.RequestError, TimeoutError) as error:
        kind = httpx2.ReadError if progress.sent else httpx2.ConnectError
        raise kind(str(error) or "not in time") from error
    finally:
        await progress.drop_half_made()


class _Progress:
    """How far a request came."""

    def __init__(self) -> None:
        self.sent = False
        """Whether the first byte may have left."""
        self._half_made: httpcore2.AsyncNetworkStream | None = None

    async def note(self, step: str, details: Mapping[str, Any]) -> None:
        if step == _CONNECTED:
            self._half_made = details["return_value"]
        elif step == _SHOOK_HANDS:
            self._half_made = None
        elif step == _SENDING:
            self.sent, self._half_made = True, None

    async def drop_half_made(self) -> None:
        """Close a connection that was cancelled while it shook hands: httpcore2 forgets it (2.16)."""
        if self._half_made is not None:
            await self._half_made.aclose()


class _Network(httpcore2.NetworkBackend):
    def __init__(self) -> None:
        self._system: Final = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - what is left counts
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        left_s = _left_s(httpcore2.ConnectTimeout)
        return _Stream(self._system.connect_tcp(host, port, left_s, local_address, socket_options))


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream: Final = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - what is left counts
        return self._stream.read(max_bytes, _left_s(httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - what is left counts
        self._stream.write(buffer, _left_s(httpcore2.WriteTimeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - what is left counts
    ) -> httpcore2.NetworkStream:
        left_s = _left_s(httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore2's
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


def _left_s(over: type[Exception]) -> float | None:
    """What is left of the time; None for ever. Raises `over` where nothing is."""
    ends_at_s = _ends_at_s.get()
    if ends_at_s == math.inf:
        return None
    left_s = ends_at_s - monotonic()
    if left_s <= 0.0:  # 0 would mean to a socket: do not wait at all, which ends otherwise than in a timeout
        raise over("the time is up")
    return left_s
