"""Partitions of what grows: events by number, the log of delivery attempts by day.

Events are dropped from the beginning, a partition at a time, so that what is kept begins with one
number (`EventReader.oldest_kept`). Making a partition disturbs nobody. Dropping one needs every
reader of the table gone for a moment; where that moment does not come soon, the next turn tries.
"""

from datetime import datetime, timedelta
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
            partition waits for a receiver or a broker.
        attempts_kept_days: How long delivery attempts are kept.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked; every turn does what
            the one before it did not.
    """
    async with pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
            missing = await connection.fetch(_queries["events_to_make"], EVENTS_PER_PARTITION_COUNT)
            missing += await connection.fetch(
                _queries["attempts_to_make"], now.date(), ATTEMPT_DAYS_AHEAD_COUNT
            )
            await _execute(connection, missing)
        await connection.execute(_queries["remove_unwanted"])
        dropped = 0
        try:
            dropped += await _drop_attempts(connection, now - timedelta(days=attempts_kept_days))
            if events_kept_days:
                dropped += await _drop_events(connection, now - timedelta(days=events_kept_days))
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            _log.info("partitions_in_use", reason=str(error))
    return PartitionCounts(len(missing), dropped)


async def _drop_attempts(connection: "Connection[asyncpg.Record]", before: datetime) -> int:
    async with connection.transaction():
        await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
        old = await connection.fetch(_queries["old_attempts"], before.date())
        await connection.execute(_queries["wait_little"], DROP_LOCK_TIMEOUT)
        await _execute(connection, old)
    return len(old)


async def _drop_events(connection: "Connection[asyncpg.Record]", before: datetime) -> int:
    """Look without a lock first, because there is nothing to drop on most days."""
    arguments = (EVENTS_PER_PARTITION_COUNT, before)
    if not await connection.fetch(_queries["old_events"], *arguments):
        return 0
    async with connection.transaction():
        await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
        await connection.execute(_queries["wait_little"], DROP_LOCK_TIMEOUT)
        await connection.execute(_queries["lock_events"])
        old = await connection.fetch(_queries["old_events"], *arguments)
        await _execute(connection, old)
    for row in old:
        _log.info("events_dropped", partition_no=row["partition_no"])
    return len(old)


async def _execute(connection: "Connection[asyncpg.Record]", rows: list[asyncpg.Record]) -> None:
    """Run statements that Postgres itself has put together (`format`)."""
    for row in rows:
        await connection.execute(row["statement"])
