"""Partitions: made ahead, dropped when old, never while somebody still needs what is in them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from couponsvc.outbox import partitions as partitions_module
from couponsvc.outbox.partitions import (
    ATTEMPT_DAYS_AHEAD_COUNT,
    EVENTS_PER_PARTITION_COUNT,
    PartitionCounts,
    tend_partitions,
)
from couponsvc.outbox.reading import EventReader
from tests.integration.outbox_scene import NOW, commit_apart, feed, prepare, told
from tests.integration.scene import make_drop
from tests.integration.test_relay_sharing import scans

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
    assert (await tend(pool, kept_days=0)).made == 0
    await pool.execute("UPDATE event_counter SET last_event_no = $1", SIZE - 1)
    assert (await tend(pool, kept_days=0)).made == 1
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


@pytest.mark.parametrize("days", [KEPT_DAYS - 1, KEPT_DAYS + 1])
async def test_a_partition_whose_end_was_passed_over_is_old_when_its_last_event_is(
    pool: "Pool[asyncpg.Record]", days: int
) -> None:
    """As after a restore (docs/faults.md): the counter goes on in the next partition."""
    await prepare(pool)
    await commit_apart(pool, await make_drop(pool), [1], [1])
    await pool.execute("UPDATE events SET occurred_at = $1", NOW)
    await pool.execute("UPDATE event_counter SET last_event_no = $1", SIZE)
    await fill(pool, 1)
    await pool.execute("UPDATE events SET occurred_at = $1 WHERE event_no > $2", NOW - 30 * DAY, SIZE)
    await tend(pool, days=days)
    kept = [name for name in await partitions(pool, "events") if name in {"events_0", "events_1"}]
    assert kept == (["events_0", "events_1"] if days < KEPT_DAYS else [])


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


PARK = """
INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at, parked_at, parked_because)
SELECT 1, n, $2::timestamptz, $2, $2, 'gave up' FROM generate_series($1::bigint - $3::int + 1, $1) n
"""


async def test_what_is_parked_keeps_no_events_beyond_their_time_and_goes_with_them(
    pool: "Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions_module, "CHUNK_COUNT", 10)
    await fill(pool, 0, 1)
    await pool.execute(PARK, SIZE - 1, NOW, 35)
    await pool.execute(PARK, 2 * SIZE - 1, NOW, 1)
    assert (await tend(pool, days=KEPT_DAYS)).dropped == 0
    assert await pool.fetchval("SELECT count(*) FROM deliveries") == 36, "not before their time"
    await pool.execute(f"{QUEUE} VALUES (2, $1, $2, $2)", 2 * SIZE - 1, NOW)
    assert (await tend(pool, days=100)).dropped == 1
    rows = await pool.fetch("SELECT subscription_no, event_no FROM deliveries ORDER BY 1")
    assert [tuple(row) for row in rows] == [(1, 2 * SIZE - 1), (2, 2 * SIZE - 1)], "a waiting one keeps both"
    await pool.execute("DELETE FROM deliveries WHERE subscription_no = 2")
    assert (await tend(pool, days=100)).dropped == 1
    assert await pool.fetchval("SELECT count(*) FROM deliveries") == 0


async def test_what_is_parked_is_removed_a_piece_at_a_time_and_its_events_stay_till_all_is_gone(
    pool: "Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions_module, "CHUNK_COUNT", 10)
    monkeypatch.setattr(partitions_module, "REMOVE_PARKED_MAX_S", 0.0)
    await fill(pool, 0)
    await pool.execute(PARK, SIZE - 1, NOW, 35)
    left: list[int | bool] = []
    for _ in range(5):
        await tend(pool, days=100)
        left.append(await pool.fetchval("SELECT count(*) FROM deliveries"))
        left.append("events_0" in await partitions(pool, "events"))
    assert left == [25, True, 15, True, 5, True, 0, False, 0, False]


async def test_who_is_in_the_queue_is_judged_by_its_index_however_long_it_is(
    pool: "Pool[asyncpg.Record]",
) -> None:
    await fill(pool, 0)
    await pool.execute(f"{QUEUE} SELECT 1 + n % 3, {SIZE} + n, $1, $1 FROM generate_series(1, 30000) n", NOW)
    await pool.execute("VACUUM ANALYZE deliveries")
    statement = partitions_module._queries["old_events"]  # noqa: SLF001 - the very statement
    async with pool.acquire() as connection:
        prepared = await connection.prepare(statement)
        explained = await prepared.explain(*(SIZE, NOW + DAY, True), analyze=True)
    seen = scans(explained[0]["Plan"])
    assert "Seq Scan" not in {how for how, _ in seen}, seen
    assert sum(rows for _, rows in seen) < 100, seen
