"""Partitions of what grows: events by number, the log of delivery attempts by day.

Events are dropped from the beginning, a partition at a time, so that what is kept begins with one
number (`EventReader.oldest_kept`). Making a partition disturbs nobody. Dropping one needs every
reader of the table gone for a moment; where that moment does not come soon, the next turn tries.
"""

import asyncio
from datetime import datetime, timedelta
from time import monotonic
from typing import Final, NamedTuple

import asyncpg

from couponsvc.support import logs
from couponsvc.support.sql import Queries

EVENTS_PER_PARTITION_COUNT: Final = 1_000_000
"""Three hours of the fullest rush at 100 events a second; some 200 MB with indexes, dropped in one step."""
ATTEMPT_DAYS_AHEAD_COUNT: Final = 7
"""A relay that nobody tends for a week can still log."""
DROP_LOCK_TIMEOUT: Final = "200ms"
"""How long a drop may wait for readers, and whoever comes after it for the drop."""
REMOVE_PARKED_MAX_S: Final = 10.0
"""In one turn, of one partition."""
CHUNK_COUNT: Final = 5_000
"""Queue rows changed by one statement: some tenths of a second."""
_IN_USE: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_LOCK_KEY: Final = 0x6576_7061_7274
"""Any number that nobody else locks: 'evpart'."""

_queries = Queries("couponsvc.outbox", "partitions")
_log = logs.get("couponsvc.outbox.partitions")

Connection = asyncpg.pool.PoolConnectionProxy


class PartitionCounts(NamedTuple):
    """What a turn did."""

    made: int
    dropped: int


async def tend_partitions(
    pool: "asyncpg.Pool[asyncpg.Record]", now: datetime, *, events_kept_days: int, attempts_kept_days: int
) -> PartitionCounts:
    """Make the partitions that will be needed, drop those that are old. Several relays may do so at once.

    Args:
        pool: Of the ledger.
        now: The moment, UTC.
        events_kept_days: How long events are kept at least; 0: for ever. Longer, while one of their
            partition waits for a receiver or a broker; not for the sake of what is parked.
        attempts_kept_days: How long delivery attempts are kept.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked; every turn does what
            the one before it did not.
    """
    made = await make_partitions(pool, now)
    dropped = await drop_attempts(pool, now - timedelta(days=attempts_kept_days))
    if events_kept_days:
        dropped += await drop_events(pool, now - timedelta(days=events_kept_days))
    return PartitionCounts(made, dropped)


async def make_partitions(pool: "asyncpg.Pool[asyncpg.Record]", now: datetime) -> int:
    """Make those that will be needed; how many.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked; none was made.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
        missing = await connection.fetch(_queries["events_to_make"], EVENTS_PER_PARTITION_COUNT)
        missing += await connection.fetch(_queries["attempts_to_make"], now.date(), ATTEMPT_DAYS_AHEAD_COUNT)
        await _execute(connection, missing)
    return len(missing)


async def drop_attempts(pool: "asyncpg.Pool[asyncpg.Record]", before: datetime) -> int:
    """Drop the days of the log of attempts that ended before a moment; how many.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked; none was dropped.
    """
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
            old = await connection.fetch(_queries["old_attempts"], before.date())
            await connection.execute(_queries["wait_little"], DROP_LOCK_TIMEOUT)
            await _execute(connection, old)
    except _IN_USE as error:
        _log.info("partitions_in_use", reason=str(error))
        return 0
    return len(old)


async def drop_events(pool: "asyncpg.Pool[asyncpg.Record]", before: datetime) -> int:
    """Drop the partitions whose events are all older than a moment and wait for nobody; how many.

    What is parked of them goes first. Most days there is nothing to do, so it is looked for without a lock.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked; none was dropped.
    """
    but_for_parked = (EVENTS_PER_PARTITION_COUNT, before, False)
    arguments = (EVENTS_PER_PARTITION_COUNT, before, True)
    for row in await pool.fetch(_queries["old_events"], *but_for_parked):
        if not await _remove_parked(pool, row["partition_no"]):
            break
    if not await pool.fetch(_queries["old_events"], *arguments):
        return 0
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
            await connection.execute(_queries["wait_little"], DROP_LOCK_TIMEOUT)
            await connection.execute(_queries["lock_events"])
            old = await connection.fetch(_queries["old_events"], *arguments)
            await _execute(connection, old)
    except _IN_USE as error:
        _log.info("partitions_in_use", reason=str(error))
        return 0
    for row in old:
        _log.info("events_dropped", partition_no=row["partition_no"])
    return len(old)


async def _remove_parked(pool: "asyncpg.Pool[asyncpg.Record]", partition_no: int) -> bool:
    """Forget deliveries of a partition's events that were given up; False: the next turn goes on with it."""
    first_no = partition_no * EVENTS_PER_PARTITION_COUNT
    arguments = (first_no, first_no + EVENTS_PER_PARTITION_COUNT - 1, CHUNK_COUNT)
    ends_s, removed = monotonic() + REMOVE_PARKED_MAX_S, 0
    while True:
        began_s = monotonic()
        chunk: int = await pool.fetchval(_queries["remove_parked"], *arguments)
        removed += chunk
        if chunk < CHUNK_COUNT or monotonic() > ends_s:
            break
        await asyncio.sleep(monotonic() - began_s)  # as long again for everybody else
    if removed:
        _log.info("parked_removed", partition_no=partition_no, deliveries=removed)
    return chunk < CHUNK_COUNT


async def _execute(connection: "Connection[asyncpg.Record]", rows: list[asyncpg.Record]) -> None:
    """Run statements that Postgres itself has put together (`format`)."""
    for row in rows:
        await connection.execute(row["statement"])
