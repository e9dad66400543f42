"""What both sides say of a drop at one moment: Redis in one atomic read, Postgres in another."""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.ledger.drops import drop_of
from couponsvc.support.sql import Queries
from couponsvc.values import keys
from couponsvc.values.drop import Drop

Pool = asyncpg.Pool

QUERIES: Final = Queries("couponsvc.reconcile", "reconcile")


class LedgerSide(NamedTuple):
    """A drop in Postgres."""

    drop: Drop
    """Without its partners."""
    issued: int


class Counters(NamedTuple):
    """A state hash, in the order of `keys.STATE_FIELDS`."""

    available: int
    pending: int
    issued: int
    quantity: int
    limit: int
    opens_ms: int
    closes_ms: int
    status: int
    version: int


class GateSide(NamedTuple):
    """A drop in Redis."""

    published: int
    """The published epoch; 0: none; negative: fenced, and which it was."""
    state: Counters | None
    """Under the epoch that Postgres has; None: not loaded, or a field is missing."""
    holder_count: int
    """Of the holders hash under the epoch that Postgres has."""


async def read_ledger(
    pool: "Pool[asyncpg.Record]", shard: int, drop_nos: Collection[int] | None = None
) -> list[LedgerSide]:
    """The named drops of a shard, or all of them, in order of `drop_no`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    rows = await pool.fetch(QUERIES["read_drops"], shard, None if drop_nos is None else list(drop_nos))
    return [LedgerSide(drop_of(row), row["issued"]) for row in rows]


async def read_gate(redis: Redis, drops: Sequence[Drop]) -> list[GateSide]:
    """The same drops in Redis, same order, all in one atomic step.

    Raises:
        redis.exceptions.RedisError: Redis cannot be asked.
    """
    if not drops:
        return []
    async with redis.pipeline(transaction=True) as transaction:
        for drop in drops:
            transaction.hget(keys.shard_key(drop.shard), keys.epoch_field(drop.drop_no))
            transaction.hmget(keys.state_key(drop.shard, drop.drop_no, drop.epoch), list(keys.STATE_FIELDS))
            transaction.hlen(keys.holders_key(drop.shard, drop.drop_no, drop.epoch))
        replies: list[Any] = await transaction.execute()
    return [
        GateSide(int(published or 0), _counters(fields), holder_count)
        for published, fields, holder_count in zip(*[iter(replies)] * 3, strict=True)
    ]


def _counters(fields: Sequence[bytes | None]) -> Counters | None:
    if any(value is None for value in fields):
        return None
    return Counters(*(int(value) for value in fields if value is not None))
