"""The clock's own events: a window opens and ends, told once, in the right place."""

from datetime import timedelta

import asyncpg
import pytest

from couponsvc import limits
from couponsvc.outbox.sequencing import SequenceCounts, Sequencer
from couponsvc.values.drop import Drop
from tests.integration.outbox_scene import NOW, commit, documents, feed, number_all, prepare, tell, told
from tests.integration.scene import make_drop

Pool = asyncpg.Pool
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@pytest.fixture
async def drop(pool: "Pool[asyncpg.Record]") -> Drop:
    """Opens in an hour, for an hour."""
    await prepare(pool)
    drop = await make_drop(pool)
    await pool.execute("UPDATE drops SET opens_at = $1, closes_at = $2", NOW + HOUR, NOW + 2 * HOUR)
    return drop


async def test_a_window_is_told_when_it_opens_and_when_it_ends_and_once(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    assert drop.quantity == 10
    sequencer = Sequencer(pool)
    counts = [await sequencer.run_once(NOW + HOUR * quarter / 4) for quarter in range(12)]
    assert [count.events for count in counts] == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    opened, ended = documents(await feed(pool, 1))
    assert (opened["type"], opened["time"]) == ("couponsvc.drop.opened.v1", "2026-10-01T03:00:00.000Z")
    assert opened["data"] == {
        "drop_id": "drop-a",
        "opens_at": "2026-10-01T03:00:00.000Z",
        "closes_at": "2026-10-01T04:00:00.000Z",
        "quantity": 10,
        "state": "open",
    }
    assert (ended["type"], ended["time"]) == ("couponsvc.drop.ended.v1", "2026-10-01T04:00:00.000Z")
    closes_at = "2026-10-01T04:00:00.000Z"
    assert ended["data"] == {"drop_id": "drop-a", "closes_at": closes_at, "quantity": 10, "state": "ended"}


async def test_an_opening_is_told_within_a_second_of_it(pool: "Pool[asyncpg.Record]", drop: Drop) -> None:
    assert drop.quantity == 10
    sequencer = Sequencer(pool)
    await sequencer.run_once(NOW + HOUR - SECOND / 2)
    counts = [await sequencer.run_once(NOW + HOUR + SECOND * tenth / 10) for tenth in range(6)]
    assert sum(count.events for count in counts) == 1


async def test_vouchers_are_never_told_before_the_opening_even_if_our_clock_is_late(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await commit(pool, drop, [1], NOW + HOUR)
    await number_all(pool, NOW + HOUR - SECOND)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..1"]
    await number_all(pool, NOW + HOUR + SECOND)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..1"]


async def test_what_happened_before_the_opening_is_told_before_it(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await tell(pool, drop, "drop.paused")
    await tell(pool, drop, "drop.resumed")
    await pool.execute("UPDATE outbox SET occurred_at = $1 WHERE type = 'drop.resumed'", NOW + HOUR)
    await number_all(pool, NOW + HOUR)
    assert told(await feed(pool, 1)) == ["drop.paused", "drop.opened", "drop.resumed"]


async def test_a_window_that_passed_while_no_relay_ran_is_told_around_its_vouchers(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await commit(pool, drop, [1, 1], NOW + HOUR)
    await tell(pool, drop, "drop.restocked", {"added": 1, "quantity": 11})
    await number_all(pool, NOW + 24 * HOUR)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..2", "drop.restocked", "drop.ended"]


async def test_an_end_that_is_put_off_after_it_was_told_opens_the_window_again(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await number_all(pool, NOW + 3 * HOUR)
    await pool.execute("UPDATE drops SET closes_at = $1", NOW + 5 * HOUR)
    await commit(pool, drop, [1], NOW + 4 * HOUR)
    await number_all(pool, NOW + 4 * HOUR)
    await number_all(pool, NOW + 6 * HOUR)
    events = await feed(pool, 1)
    assert told(events) == ["drop.opened", "drop.ended", "drop.opened", "1..1", "drop.ended"]
    assert documents(events)[2]["data"]["closes_at"] == "2026-10-01T07:00:00.000Z"


@pytest.mark.parametrize("closed_at", [NOW, NOW + 1.5 * HOUR])
async def test_a_closed_drop_says_so_itself_and_its_clock_says_nothing_more(
    pool: "Pool[asyncpg.Record]", drop: Drop, closed_at: object
) -> None:
    opened = ["drop.opened"] if closed_at != NOW else []
    await number_all(pool, NOW + 1.5 * HOUR) if opened else None
    await pool.execute("UPDATE drops SET status = 2")
    await tell(pool, drop, "drop.closed")
    await number_all(pool, NOW + 3 * HOUR)
    assert told(await feed(pool, 1)) == [*opened, "drop.closed"]


async def test_vouchers_of_a_drop_that_was_closed_meanwhile_are_told_after_its_opening(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await commit(pool, drop, [1], NOW + HOUR)
    await tell(pool, drop, "drop.closed")
    await pool.execute("UPDATE drops SET status = 2")
    await number_all(pool, NOW + 3 * HOUR)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..1", "drop.closed"]


async def test_many_windows_at_once_are_told_turn_by_turn(
    pool: "Pool[asyncpg.Record]", drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        await make_drop(pool, f"drop-{n}")
    monkeypatch.setattr(limits, "SEQUENCE_TURN_MAX_COUNT", 2)
    sequencer = Sequencer(pool)
    moment = NOW + HOUR
    assert drop.quantity == 10
    assert [(await sequencer.run_once(moment)).events for _ in range(4)] == [2, 2, 1, 0]
    assert await sequencer.run_once(moment + SECOND) == SequenceCounts()
