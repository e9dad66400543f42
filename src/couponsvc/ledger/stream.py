"""The grant stream's commands with the types that this service's connections really return."""

from typing import Any, NamedTuple

from redis.asyncio import Redis


class RawEntry(NamedTuple):
    """A stream entry as Redis returned it. `fields` is None where the entry was deleted."""

    entry_id: bytes
    fields: dict[bytes, bytes] | None


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
    reply: Any = await redis.xrange(stream, first, last, count)
    return [RawEntry(*entry) for entry in reply]
