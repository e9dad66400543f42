"""What both sides say of a drop at one moment: Redis in one atomic read, Postgres in another."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.ledger.drops import drop_of
from couponsvc.reconcile.gate_reading import Answer, ask, questions_about
from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop

Pool = asyncpg.Pool

QUERIES: Final = Queries("couponsvc.reconcile", "reconcile")


class LedgerSide(NamedTuple):
    """A drop in Postgres."""

    drop: Drop
    """Without its partners."""
    issued: int


class Marks(NamedTuple):
    """Every drop of a shard in Postgres, by what moves whenever something moves; same order each."""

    drop_nos: list[int]
    epochs: list[int]
    versions: list[int]
    issued_counts: list[int]


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
    text: bytes = b""
    """As the script said it: where it is the same again, so is everything above."""


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


async def read_marks(pool: "Pool[asyncpg.Record]", shard: int) -> Marks:
    """The marks of all drops of a shard, in order of `drop_no`; a fraction of the cost of `read_ledger`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    row = await pool.fetchrow(QUERIES["read_marks"], shard)
    assert row is not None, "an aggregate has one row"  # noqa: S101 - narrows the type
    return Marks(*row)


async def read_gate(redis: Redis, drops: Sequence[Drop]) -> list[GateSide]:
    """The same drops (of one shard) in Redis, same order; each in one atomic step with the stream.

    Raises:
        redis.exceptions.RedisError: Redis cannot be asked.
    """
    if not drops:
        return []
    epochs = [(drop.drop_no, drop.epoch) for drop in drops]
    answers = await ask(redis, questions_about(drops[0].shard, epochs))
    return [gate_side(text, answer.entry_count) for answer in answers for text in answer.texts]


async def read_stream(redis: Redis, shard: int) -> StreamSide:
    """The stream and its counter, in one atomic step.

    Raises:
        redis.exceptions.RedisError: Redis cannot be asked.
    """
    return stream_side(await ask(redis, questions_about(shard, [])))


def stream_side(answers: Sequence[Answer]) -> StreamSide:
    """What the newest of some answers says of the stream."""
    return StreamSide(answers[-1].backlog, answers[-1].entry_count)


def gate_side(text: bytes, entry_count: int) -> GateSide:
    """Read what `read_drops.lua` said of a drop while the stream had so many entries."""
    published, holder_count, *fields = text.split(b" ")
    state = None if b"-" in fields else Counters._make(map(int, fields))
    stranded_count = state.pending if state and entry_count == 0 else 0
    return GateSide(int(published), state, int(holder_count), stranded_count, text)
