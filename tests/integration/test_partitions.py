"""Partitions: made ahead, dropped when old, never while somebody still needs what is in them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from couponsvc.outbox.partitions import (
    ATTEMPT_DAYS_AHEAD_COUNT,
    EVENTS_PER_PARTITION_COUNT,
    PartitionCounts,
    tend_partitions,
)
from couponsvc.outbox.reading import EventReader
from tests.integration.outbox_scene import NOW, commit_apart, feed, prepare, subscribe, told
from tests.integration.scene import make_drop

pytestmark = pytest.mark.slow

Pool = asyncpg.Pool
DAY = timedelta(days=1)
SIZE = EVENTS_PER_PARTITION_COUNT
KEPT_DAYS = 10


@pytest.fixture
async def other(database: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A session of somebody else."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def tend(
    pool: "Pool[asyncpg.Record]", *, days: float = 0, kept_days: int = KEPT_DAYS
) -> PartitionCounts:
    return await tend_partitions(pool, NOW + days * DAY, events_kept_days=kept_days, attempts_kept_days=1_000)


async def partitions(pool: "Pool[asyncpg.Record]", parent: str) -> list[str]:
    rows = await pool.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = $1::regclass", parent
    )
    return sorted(row["name"] for row in rows)


async def fill(pool: "Pool[asyncpg.Record]", *partition_nos: int) -> None:
    """The last event of each partition, from now, and the counter after them; partitions ahead of them."""
    for n in partition_nos:
        last_no = (n + 1) * SIZE - 1
        await pool.execute("UPDATE event_counter SET last_event_no = $1", last_no - 1)
        await prepare(pool)
        await pool.execute(
            "INSERT INTO events (event_no, partner_no, type, data, occurred_at)"
            """ VALUES ($1, 1, 'webhook.test', '{"subscription_id":"sub_1"}', $2)""",
            last_no,
            NOW,
        )
        await pool.execute("UPDATE event_counter SET last_event_no = $1", last_no)


async def test_a_fresh_ledger_gets_this_partition_and_the_next_and_days_around_today(
    pool: "Pool[asyncpg.Record]",
) -> None:
    assert await tend(pool) == PartitionCounts(made=2 + ATTEMPT_DAYS_AHEAD_COUNT + 2, dropped=0)
    assert await partitions(pool, "events") == ["events_0", "events_1"]
    days = await partitions(pool, "delivery_attempts")
    assert days[0] == "delivery_attempts_20260930"
    assert days[-1] == "delivery_attempts_20261008"
    assert await tend(pool) == PartitionCounts(0, 0)


async def test_one_whole_partition_is_always_ahead_of_the_newest_number(pool: "Pool[asyncpg.Record]") -> None:
    await tend(pool)
    await pool.execute("UPDATE event_counter SET last_event_no = $1", SIZE - 2)
    assert (await tend(pool)).made == 0
    await pool.execute("UPDATE event_counter SET last_event_no = $1", SIZE - 1)
    assert (await tend(pool)).made == 1
    assert await partitions(pool, "events") == ["events_0", "events_1", "events_2"]


async def test_numbers_go_on_over_the_end_of_a_partition(pool: "Pool[asyncpg.Record]") -> None:
    await pool.execute("UPDATE event_counter SET last_event_no = $1", SIZE - 3)
    await prepare(pool)
    drop = await make_drop(pool)
    await commit_apart(pool, drop, *[[1]] * 4)
    events = await feed(pool, 1)
    assert [event.event_no for event in events] == [SIZE - 2, SIZE - 1, SIZE, SIZE + 1, SIZE + 2]
    assert told(events) == ["drop.opened", "1..1", "2..2", "3..3", "4..4"]


async def test_a_made_partition_has_every_index_and_rule_of_its_parent(pool: "Pool[asyncpg.Record]") -> None:
    await tend(pool)
    for parent, child in (("events", "events_1"), ("delivery_attempts", "delivery_attempts_20261001")):
        indexes = "SELECT count(*) FROM pg_index WHERE indrelid = $1::regclass"
        assert await pool.fetchval(indexes, child) == await pool.fetchval(indexes, parent)
        rules = (
            "SELECT array_agg(pg_get_constraintdef(oid) ORDER BY 1) FROM pg_constraint"
            " WHERE conrelid = $1::regclass AND contype = 'c'"
        )
        assert await pool.fetchval(rules, child) == await pool.fetchval(rules, parent)
    with pytest.raises(asyncpg.CheckViolationError):
        await pool.execute(
            "INSERT INTO events (event_no, partner_no, type, occurred_at, voucher_count)"
            " VALUES (1, 1, 'drop.paused', now(), 1)"
        )


async def test_many_relays_may_tend_at_once(pool: "Pool[asyncpg.Record]") -> None:
    counts = await asyncio.gather(*(tend(pool) for _ in range(6)))
    assert sum(count.made for count in counts) == 2 + ATTEMPT_DAYS_AHEAD_COUNT + 2


async def test_making_a_partition_waits_for_no_reader_and_no_writer(
    pool: "Pool[asyncpg.Record]", other: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await tend(pool)
    async with other.transaction():
        await other.execute("SELECT count(*) FROM events")
        await other.execute("DELETE FROM events")
        await other.execute("UPDATE event_counter SET last_event_no = 0")
        assert (await asyncio.wait_for(tend(pool, days=1), 2)).made == 1


async def test_old_events_go_by_whole_partitions_and_the_reader_knows_what_is_kept(
    pool: "Pool[asyncpg.Record]",
) -> None:
    await fill(pool, 0, 1)
    reader = EventReader(pool)
    assert await reader.oldest_kept() == 1
    assert (await tend(pool, days=KEPT_DAYS)).dropped == 0
    assert (await tend(pool, days=KEPT_DAYS + 0.01)).dropped == 2
    assert await partitions(pool, "events") == ["events_2", "events_3"]
    assert await reader.oldest_kept() == 2 * SIZE
    assert (await tend(pool, days=KEPT_DAYS + 0.01)) == PartitionCounts(0, 0)


async def test_without_partitions_nothing_was_dropped(pool: "Pool[asyncpg.Record]") -> None:
    assert await EventReader(pool).oldest_kept() == 1


async def test_events_are_kept_for_ever_unless_somebody_says_otherwise(pool: "Pool[asyncpg.Record]") -> None:
    await fill(pool, 0)
    await tend(pool, days=10_000, kept_days=0)
    assert "events_0" in await partitions(pool, "events")


async def test_the_partition_that_is_being_written_stays_however_old(pool: "Pool[asyncpg.Record]") -> None:
    await fill(pool, 0)
    await pool.execute("UPDATE event_counter SET last_event_no = last_event_no - 1")
    await tend(pool, days=10_000)
    assert "events_0" in await partitions(pool, "events")


QUEUE = "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at)"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
NEEDED = {
    "a delivery waits": f"{QUEUE} VALUES (1, $1, $2, $2)",
    "a delivery is parked": (
        "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at, parked_at, parked_because)"
        " VALUES (1, $1, $2, $2, $2, 'gave up')"
    ),
    "a broker is behind": (
        "INSERT INTO sinks (sink, last_event_no) SELECT 'nats', $1 - 1 WHERE $2::timestamptz IS NOT NULL"
    ),
}


@pytest.mark.parametrize("need", NEEDED)
async def test_what_somebody_still_needs_stays_and_so_does_everything_after_it(
    pool: "Pool[asyncpg.Record]", need: str
) -> None:
    await fill(pool, 0, 1, 2)
    await pool.execute(NEEDED[need], 2 * SIZE - 1, NOW - 100 * DAY)
    assert (await tend(pool, days=100)).dropped == 1
    assert await partitions(pool, "events") == ["events_1", "events_2", "events_3", "events_4"]
    await pool.execute("DELETE FROM deliveries")
    await pool.execute("UPDATE sinks SET last_event_no = last_event_no + 1")
    assert (await tend(pool, days=100)).dropped == (1 if need == "a broker is behind" else 2)


async def test_a_partition_in_use_is_dropped_by_a_later_turn_and_nobody_waits_long(
    pool: "Pool[asyncpg.Record]", other: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await fill(pool, 0)
    async with other.transaction():
        await other.fetch("SELECT * FROM events")
        assert (await asyncio.wait_for(tend(pool, days=100), 2)).dropped == 0
    assert (await tend(pool, days=100)).dropped == 1


async def test_a_delivery_that_is_queued_while_its_partition_is_judged_keeps_it(
    pool: "Pool[asyncpg.Record]", other: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Who queues a delivery has read the event in the same transaction; the judge waits for that."""
    await fill(pool, 0)
    async with other.transaction():
        await other.execute("SET LOCAL idle_in_transaction_session_timeout = '5s'")
        await other.execute(f"{QUEUE} SELECT 1, event_no, occurred_at, occurred_at FROM events")
        tending = asyncio.create_task(tend(pool, days=100))
        await _until_waiting_for_a_lock(pool)
    assert (await tending).dropped == 0
    assert "events_0" in await partitions(pool, "events")


async def _until_waiting_for_a_lock(pool: Any) -> None:
    async with asyncio.timeout(5):
        while not await pool.fetchval(WAITING):
            await asyncio.sleep(0.005)


async def test_old_days_of_the_log_go_and_coming_days_are_made(pool: "Pool[asyncpg.Record]") -> None:
    await tend(pool)
    counts = [
        await tend_partitions(pool, NOW + days * DAY, events_kept_days=0, attempts_kept_days=30)
        for days in (1, 29, 30, 32)
    ]
    assert [count.dropped for count in counts] == [0, 0, 1, 2]
    assert [count.made for count in counts] == [1, 9, 1, 2]
    assert (await partitions(pool, "delivery_attempts"))[0] == "delivery_attempts_20261003"


async def test_deliveries_queued_while_their_subscription_was_deleted_are_removed(
    pool: "Pool[asyncpg.Record]",
) -> None:
    await make_drop(pool)
    kept, gone = [await subscribe(pool, 1, "couponsvc.drop.paused.v1") for _ in range(2)]
    await pool.execute(f"{QUEUE} VALUES ($1, 1, $3, $3), ($2, 1, $3, $3)", kept, gone, NOW)
    await pool.execute("UPDATE subscriptions SET deleted_at = now() WHERE subscription_no = $1", gone)
    await tend(pool)
    assert await pool.fetchval("SELECT array_agg(subscription_no) FROM deliveries") == [kept]
