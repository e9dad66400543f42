"""Keeps what nobody can read: whole, in Postgres, and out of everybody's way."""

from typing import Final

import asyncpg
import msgspec
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.ledger import metrics
from couponsvc.ledger.acknowledge import acknowledge_unread
from couponsvc.ledger.inbox import Unreadable
from couponsvc.ledger.stream import GrantStream, entries_between
from couponsvc.support import logs
from couponsvc.support.sql import Queries
from couponsvc.values import keys

_log = logs.get("couponsvc.ledger.dead_letters")
_queries: Final = Queries("couponsvc.ledger", "commit")
_payload = msgspec.msgpack.Encoder().encode


class DeadLetters:
    """Sets entries aside that were handed out too often.

    Not at the first attempt, because a newer version that can read an entry may be about to
    start. What an entry granted is never guessed at: its units stay pending in Redis, and so does
    its share of the backlog, until whoever checks for drift rebuilds the drop.
    """

    def __init__(
        self, shard: int, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis, stream: GrantStream
    ) -> None:
        self._shard = shard
        self._pool = pool
        self._redis = redis
        self._stream = stream

    async def set_aside(self, entry: Unreadable) -> bool:
        """Keep an entry if it was handed out ATTEMPTS_MAX_COUNT times; else leave it on the stream.

        Raises:
            redis.exceptions.RedisError, OSError: Redis is away; the entry will be delivered again.
        """
        entry_id, reason = entry
        deliveries = await self._stream.deliveries(entry_id)
        _log.error("entry_unreadable", entry_id=entry_id, reason=reason, deliveries=deliveries)
        if deliveries < limits.ATTEMPTS_MAX_COUNT:
            return False
        found = await entries_between(self._redis, keys.grants_key(self._shard), entry_id, entry_id, 1)
        payload = _payload(found[0].fields if found else {})
        try:
            await self._pool.execute(_queries["keep_dead_letter"], self._shard, entry_id, payload, reason)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            _log.warning("dead_letter_waits", error=type(error).__name__)
            return False
        await acknowledge_unread(self._redis, self._shard, [entry_id])
        metrics.dead_letters.inc()
        _log.error("dead_letter", entry_id=entry_id, shard=self._shard)
        return True
