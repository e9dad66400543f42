"""Asks the Redis server behind an address who it is, often and cheaply."""

from time import monotonic
from typing import Final

from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import RespLine, open_line
from couponsvc.support.server_identity import INFO_COMMAND, ServerIdentity, identity_of

FRESH_CONNECTION_S: Final = 1.0
"""A server is asked who it is on a connection younger than this: an old one may lead to a server
that clients are no longer sent to."""
REPLY_TIMEOUT_S: Final = 5.0
"""Redis answers within milliseconds, but for a script or a fork that holds it up."""


class Doorbell:
    """One line to Redis, opened anew every so often."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url: Final = redis_url
        self._line: RespLine | None = None
        self._opened_at = 0.0

    async def ask(self) -> ServerIdentity:
        """Who answers there now.

        Raises:
            NotMaster: a replica.
            OSError, redis.exceptions.RedisError: it cannot be asked.
        """
        line = self._line
        if line is None or not line.usable or monotonic() - self._opened_at > FRESH_CONNECTION_S:
            self.close()
            opened_at = monotonic()
            line = await open_line(make_connection(self._redis_url), timeout_s=REPLY_TIMEOUT_S)
            self._line, self._opened_at = line, opened_at
        return identity_of(await line.call(*INFO_COMMAND))

    def close(self) -> None:
        """Close the line."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
