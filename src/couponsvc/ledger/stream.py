"""The grant stream's commands with the types that this service's connections really return."""

from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError


class RawEntry(NamedTuple):
    """A stream entry as Redis returned it. `fields` is empty where the entry was deleted."""

    entry_id: bytes
    fields: dict[bytes, bytes] | None


class GrantStream:
    """A shard's stream as one member of its consumer group sees it.

    Every method raises `redis.exceptions.RedisError` where Redis cannot answer; entries that it
    had already handed over are then in this consumer's list and come back with `read_own`.
    """

    def __init__(self, redis: Redis, stream: str, group: str, consumer: str) -> None:
        self._redis = redis
        self._stream = stream
        self._group = group
        self._consumer = consumer

    async def create_group(self) -> None:
        """Make stream and group where they are missing, reading from the very first entry."""
        try:
            await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def read_new(self, count: int, block_ms: int | None) -> list[RawEntry]:
        """Entries that no consumer has seen, at most `count`; None does not wait."""
        return await self._read(">", count, block_ms)

    async def read_own(self, after: str, count: int) -> list[RawEntry]:
        """Entries handed to this consumer and not acknowledged, with ids after `after`."""
        return await self._read(after, count, None)

    async def take_over(self, idle_ms: int, cursor: str, count: int) -> tuple[str, list[RawEntry]]:
        """Entries that any consumer left lying for `idle_ms`; they become this consumer's.

        Returns:
            The cursor to go on from (`0-0`: the whole list was seen), and the entries.
        """
        reply: Any = await self._redis.xautoclaim(
            self._stream, self._group, self._consumer, idle_ms, cursor, count
        )
        return reply[0].decode(), _entries(reply[1])

    async def deliveries(self, entry_id: str) -> int:
        """How often an entry was handed out; 0 where it is not pending any more."""
        reply: Any = await self._redis.xpending_range(
            self._stream, self._group, min=entry_id, max=entry_id, count=1
        )
        return int(reply[0]["times_delivered"]) if reply else 0

    async def leave(self) -> None:
        """Remove this consumer from the group, unless entries are still in its hands."""
        reply: Any = await self._redis.xpending_range(
            self._stream, self._group, min="-", max="+", count=1, consumername=self._consumer
        )
        if not reply:  # removing a consumer forgets its entries, so only an idle one may leave
            await self._redis.xgroup_delconsumer(self._stream, self._group, self._consumer)

    async def _read(self, after: str, count: int, block_ms: int | None) -> list[RawEntry]:
        reply: Any = await self._redis.xreadgroup(
            self._group, self._consumer, {self._stream: after}, count=count, block=block_ms
        )
        if not reply:
            return []
        return _entries(next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1])


async def newest_entry_id(redis: Redis, stream: str) -> str | None:
    """Id of the youngest entry, or None where the stream is empty or missing.

    Raises:
        redis.exceptions.RedisError: the stream cannot be read.
    """
    reply: Any = await redis.xrevrange(stream, count=1)
    return reply[0][0].decode() if reply else None


async def entries_between(redis: Redis, stream: str, first: str, last: str, count: int) -> list[RawEntry]:
    """Up to `count` entries from `first` to `last`, both as XRANGE takes them.

    Raises:
        redis.exceptions.RedisError: the stream cannot be read.
    """
    return _entries(await redis.xrange(stream, first, last, count))


def _entries(reply: Any) -> list[RawEntry]:  # noqa: ANN401 - redis-py types all answers for text and bytes at once
    if reply and isinstance(reply[0], list):  # XREADGROUP under RESP3 is wrapped once more
        reply = reply[0]
    return [RawEntry(*entry) for entry in reply or []]
