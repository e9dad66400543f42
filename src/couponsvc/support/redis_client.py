"""Connections to Redis that never repeat a command by themselves.

redis-py retries ten times by default and so runs a script again when only the reply was
lost (measured: 10 calls, 20 executions). Here retries are off for every client; whoever
may safely ask again says so in its own code.

A connection that the network reset while nobody used it, or before its first command, is a broken
connection like any other: uvloop says so by RuntimeError, which redis-py passes on, and which would
end whoever expects `ConnectionError`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

CONNECT_TIMEOUT_S = 2.0
"""A server on the same network answers within milliseconds; two seconds is dead."""
POOL_WAIT_S = 5.0
"""How long a caller waits for a free connection."""


class _TellsResets(AbstractConnection):
    """Says `ConnectionError` where uvloop finds on sending that the connection is gone."""

    async def send_packed_command(
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:  # redis-py has closed its side; nothing was sent
            raise RedisConnectionError(f"the connection was lost: {error}") from error


class _Tcp(_TellsResets, Connection):
    """Of redis:// addresses."""


class _Tls(_TellsResets, SSLConnection):
    """Of rediss:// addresses."""


class _Unix(_TellsResets, UnixDomainSocketConnection):
    """Of unix:// addresses."""


_TELLING: Final[Mapping[type[AbstractConnection], type[_TellsResets]]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def open_redis(
    url: str,
    *,
    socket_timeout_s: float | None = 5.0,
    max_connections: int = 8,
    **connection_options: Any,  # noqa: ANN401 - passed on to redis-py's connection unread
) -> Redis:
    """Make a client for `url`; nothing is sent until first use. Replies are bytes.

    `socket_timeout_s` is None for connections that block on purpose (stream readers,
    subscribers).
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=POOL_WAIT_S,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        protocol=3,
        **connection_options,
    )
    pool.connection_class = _TELLING[pool.connection_class]
    return Redis.from_pool(pool)


def make_connection(
    url: str,
    **connection_options: Any,  # noqa: ANN401 - passed on to redis-py's connection unread
) -> AbstractConnection:
    """One connection to `url`, not connected yet, for `support.resp` to take over; RESP2, no retries."""
    options = {"socket_connect_timeout": CONNECT_TIMEOUT_S, **connection_options}
    pool = ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2, **options)
    pool.connection_class = _TELLING[pool.connection_class]
    return pool.make_connection()  # type: ignore[no-untyped-call, no-any-return]
