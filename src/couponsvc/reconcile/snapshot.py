"""What both sides say of a drop at one moment: Redis in one atomic read, Postgres in another."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

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
    stranded_count: int = 0
    """Pending grants while the stream is empty: their entry is gone, nobody will settle them."""


class StreamSide(NamedTuple):
    """The grant stream of a shard."""

    backlog: int
    """Grants that are counted as not acknowledged."""
    entry_count: int


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
    """The same drops (of one shard) in Redis, same order, all in one atomic step.

    Raises:
        redis.exceptions.RedisError: Redis cannot be asked.
    """
    if not drops:
        return []
    async with redis.pipeline(transaction=True) as transaction:
        transaction.xlen(keys.grants_key(drops[0].shard))
        for drop in drops:
            transaction.hget(keys.shard_key(drop.shard), keys.epoch_field(drop.drop_no))
            transaction.hmget(keys.state_key(drop.shard, drop.drop_no, drop.epoch), list(keys.STATE_FIELDS))
            transaction.hlen(keys.holders_key(drop.shard, drop.drop_no, drop.epoch))
        entry_count, *replies = await transaction.execute()
    return [
        _gate_side(int(published or 0), _counters(fields), holder_count, entry_count)
        for published, fields, holder_count in zip(*[iter(replies)] * 3, strict=True)
    ]


async def read_stream(redis: Redis, shard: int) -> StreamSide:
    """The stream and its counter, in one atomic step.

    Raises:
        redis.exceptions.RedisError: Redis cannot be asked.
    """
    async with redis.pipeline(transaction=True) as transaction:
        transaction.hget(keys.shard_key(shard), keys.BACKLOG_FIELD)
        transaction.xlen(keys.grants_key(shard))
        backlog, entry_count = await transaction.execute()
    return StreamSide(int(backlog or 0), entry_count)


def _gate_side(published: int, state: Counters | None, holder_count: int, entry_count: int) -> GateSide:
    stranded_count = state.pending if state and entry_count == 0 else 0
    return GateSide(published, state, holder_count, stranded_count)


def _counters(fields: Sequence[bytes | None]) -> Counters | None:
    if any(value is None for value in fields):
        return None
    return Counters(*(int(value) for value in fields if value is not None))
