"""The sequencer: outbox rows become numbered events, one per partner that may know."""

import asyncio
import json
from datetime import timedelta

import asyncpg
import pytest
from structlog.testing import capture_logs

from couponsvc import limits
from couponsvc.outbox import sequencing
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sequencing import MISFIT_EVERY, SequenceCounts, Sequencer
from couponsvc.support.metrics import render
from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop
from couponsvc.values.event import EventType
from tests.integration.outbox_scene import (
    NOW,
    admit,
    commit,
    documents,
    feed,
    number_all,
    prepare,
    subscribe,
    tell,
    told,
)
from tests.integration.scene import make_drop

pytestmark = pytest.mark.slow

Pool = asyncpg.Pool
ISSUED, PAUSED = EventType.VOUCHER_ISSUED.public, EventType.DROP_PAUSED.public


@pytest.fixture(autouse=True)
async def _partitions(pool: "Pool[asyncpg.Record]") -> None:
    await prepare(pool)


@pytest.fixture
async def drop(pool: "Pool[asyncpg.Record]") -> Drop:
    """Open since long ago, for partner 1, who was told so."""
    drop = await make_drop(pool, quantity=100_000)
    assert await number_all(pool) == SequenceCounts(0, 1, 0)
    return drop


async def rows_left(pool: "Pool[asyncpg.Record]") -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM outbox")
    return count


def shown(gauge: str) -> float:
    [line] = [line for line in render().decode().splitlines() if line.startswith(f"{gauge} ")]
    return float(line.split()[1])


async def queue(pool: "Pool[asyncpg.Record]") -> list[tuple[int, int]]:
    rows = await pool.fetch("SELECT subscription_no, event_no FROM deliveries ORDER BY 1, 2")
    return [tuple(row) for row in rows]


async def test_a_batch_becomes_one_event_and_leaves_the_outbox(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await commit(pool, drop, [1, 1, 1])
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(outbox_rows=1, events=1)
    [_, issued] = documents(await feed(pool, 1))
    assert (issued["id"], issued["type"], issued["source"]) == ("evt_2", ISSUED, "/v1/drops/drop-a")
    assert (issued["subject"], issued["sequence"]) == ("bank-a", "0000000002")
    assert [voucher["seq"] for voucher in issued["data"]["vouchers"]] == [1, 2, 3]
    assert await rows_left(pool) == 0


async def test_a_mixed_batch_tells_each_partner_of_its_own_vouchers_only(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    [second, third, idle] = await admit(pool, drop, "bank-b", "bank-c", "bank-d")
    owners = [1, second, third, third, 1, second, second]
    await commit(pool, drop, owners)
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(outbox_rows=1, events=3)
    for partner_no in (1, second, third):
        event = (await feed(pool, partner_no))[-1]
        vouchers = documents([event])[0]["data"]["vouchers"]
        assert [v["seq"] for v in vouchers] == [n for n, o in enumerate(owners, 1) if o == partner_no]
        assert event.voucher_count == len(vouchers)
        for other in {1, second, third} - {partner_no}:
            assert f"of-{other}-" not in event.body.decode()
    assert await feed(pool, idle) == []


async def test_a_large_batch_becomes_events_of_at_most_500_vouchers_in_order(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    [second] = await admit(pool, drop, "bank-b")
    await commit(pool, drop, [1] * 501 + [1, second] * 400)
    await number_all(pool)
    for partner_no, count in ((1, 901), (second, 400)):
        events = [event for event in await feed(pool, partner_no) if event.voucher_count]
        seqs = [v["seq"] for document in documents(events) for v in document["data"]["vouchers"]]
        assert len(seqs) == count
        assert seqs == sorted(set(seqs))
        assert max(event.voucher_count for event in events) <= limits.EVENT_VOUCHERS_MAX_COUNT


async def test_a_change_of_a_drop_reaches_every_present_partner(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    [second] = await admit(pool, drop, "bank-b")
    await tell(pool, drop, "drop.restocked", {"added": 5, "quantity": 15})
    await pool.execute("INSERT INTO partners (partner_id, name) VALUES ('stranger', 'S')")
    assert (await number_all(pool)).events == 2
    for partner_no in (1, second):
        [document] = documents((await feed(pool, partner_no))[-1:])
        assert document["type"] == EventType.DROP_RESTOCKED.public
        assert document["data"] == {"drop_id": "drop-a", "added": 5, "quantity": 15, "state": "open"}


async def test_a_drop_that_nobody_may_see_leaves_the_outbox_without_an_event(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await pool.execute("DELETE FROM drop_partners")
    await tell(pool, drop, "drop.paused")
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(outbox_rows=1, events=0)
    assert await rows_left(pool) == 0


async def test_live_subscriptions_that_match_get_a_delivery(pool: "Pool[asyncpg.Record]", drop: Drop) -> None:
    [second] = await admit(pool, drop, "bank-b")
    other = await make_drop(pool, "drop-b")
    await number_all(pool)
    vouchers = await subscribe(pool, 1, ISSUED)
    both = await subscribe(pool, 1, ISSUED, PAUSED, drop_nos=[drop.drop_no])
    elsewhere = await subscribe(pool, 1, ISSUED, PAUSED, drop_nos=[other.drop_no])
    foreign = await subscribe(pool, second, PAUSED)
    for gone in ("deleted_at", "disabled_at"):
        number = await subscribe(pool, 1, ISSUED, PAUSED)
        await pool.execute(f"UPDATE subscriptions SET {gone} = now() WHERE subscription_no = $1", number)
    newest = await pool.fetchval("SELECT last_event_no FROM event_counter")
    await commit(pool, drop, [1])
    await tell(pool, drop, "drop.paused")
    counts = await Sequencer(pool).run_once(NOW)
    issued, paused, paused_b = newest + 1, newest + 2, newest + 3
    assert await queue(pool) == [(vouchers, issued), (both, issued), (both, paused), (foreign, paused_b)]
    assert elsewhere not in {number for number, _ in await queue(pool)}
    assert counts == SequenceCounts(outbox_rows=2, events=3, deliveries=4)
    assert await pool.fetchval("SELECT bool_and(due_at = $1 AND queued_at = $1) FROM deliveries", NOW)


async def test_a_test_event_goes_to_whoever_asked_whatever_that_one_names(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    asked = await subscribe(pool, 1, PAUSED, drop_nos=[drop.drop_no])
    await subscribe(pool, 1, PAUSED)
    await pool.execute("INSERT INTO outbox (type, subscription_no) VALUES ('webhook.test', $1)", asked)
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(1, 1, 1)
    [(subscription_no, event_no)] = await queue(pool)
    [event] = await EventReader(pool).by_numbers([event_no])
    [document] = documents([event])
    assert (subscription_no, event.drop_no) == (asked, None)
    assert document["source"] == f"/v1/subscriptions/sub_{asked}"
    assert document["data"] == {"subscription_id": f"sub_{asked}"}
    assert "sequence" not in document


async def test_a_test_of_a_deleted_subscription_is_forgotten(pool: "Pool[asyncpg.Record]") -> None:
    gone = await subscribe(pool, 1, PAUSED) if await make_drop(pool) else 0
    await pool.execute("UPDATE subscriptions SET deleted_at = now()")
    await pool.execute("INSERT INTO outbox (type, subscription_no) VALUES ('webhook.test', $1)", gone)
    assert (await number_all(pool)).deliveries == 0
    assert await rows_left(pool) == 0


async def test_a_kind_that_only_a_newer_version_knows_waits_and_blocks_nobody(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await tell(pool, drop, "drop.enchanted")
    await commit(pool, drop, [1])
    assert (await number_all(pool)).outbox_rows == 1
    assert await pool.fetchval("SELECT array_agg(type) FROM outbox") == ["drop.enchanted"]
    assert shown("couponsvc_outbox_unknown_rows") == 1
    assert await number_all(pool) == SequenceCounts()


async def test_who_has_news_is_announced_with_the_commit(
    pool: "Pool[asyncpg.Record]", drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    [second] = await admit(pool, drop, "bank-b")
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with pool.acquire() as connection:
        await connection.add_listener("couponsvc_events", lambda *found: heard.put_nowait(str(found[-1])))
        await tell(pool, drop, "drop.paused")
        await number_all(pool)
        assert await asyncio.wait_for(heard.get(), 5) == f"1,{second}"
        monkeypatch.setattr(sequencing, "NEWS_MAX_CHARS", 2)
        await tell(pool, drop, "drop.resumed")
        await number_all(pool)
        assert await asyncio.wait_for(heard.get(), 5) == ""
        await connection.reset()


async def test_a_gap_in_a_drops_rows_leaves_that_drop_alone_and_goes_on_with_others(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    other = await make_drop(pool, "drop-b")
    for _ in range(3):
        await commit(pool, drop, [1, 1])
        await commit(pool, other, [1])
    await pool.execute("DELETE FROM outbox WHERE drop_no = $1 AND first_seq = 3", drop.drop_no)
    await tell(pool, drop, "drop.paused")
    sequencer = Sequencer(pool)
    with capture_logs() as logs:
        assert (await sequencer.run_once(NOW)).outbox_rows == 4
    assert [(log["log_level"], log["drop_no"]) for log in logs] == [("error", drop.drop_no)]
    assert await sequencer.run_once(NOW + timedelta(seconds=1)) == SequenceCounts()
    assert told(await feed(pool, 1)) == ["drop.opened", "1..2", "drop.opened", "1..3"]
    assert shown("couponsvc_outbox_misfit_drops") == 1
    await pool.execute(
        "INSERT INTO outbox (type, drop_no, first_seq, last_seq) VALUES ('voucher.issued', $1, 3, 4)",
        drop.drop_no,
    )
    await pool.execute(
        "UPDATE outbox SET outbox_no = DEFAULT WHERE drop_no = $1 AND first_seq IS DISTINCT FROM 3",
        drop.drop_no,
    )
    assert (await sequencer.run_once(NOW + MISFIT_EVERY)).outbox_rows == 3
    assert shown("couponsvc_outbox_misfit_drops") == 0
    assert told([e for e in await feed(pool, 1) if e.drop_no == drop.drop_no]) == [
        "drop.opened", "1..2", "3..6", "drop.paused",
    ]  # fmt: skip


async def test_a_row_that_cannot_be_read_holds_up_its_own_drop_only(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    other = await make_drop(pool, "drop-b")
    await tell(pool, drop, "drop.paused")
    await commit(pool, drop, [1])
    await commit(pool, other, [1])
    await pool.execute("UPDATE outbox SET data = '[1]' WHERE type = 'drop.paused'")
    await number_all(pool)
    assert await rows_left(pool) == 2
    assert told(await feed(pool, 1)) == ["drop.opened", "drop.opened", "1..1"]


async def test_vouchers_that_are_missing_are_never_told_of(pool: "Pool[asyncpg.Record]", drop: Drop) -> None:
    other = await make_drop(pool, "drop-b")
    await commit(pool, drop, [1, 1])
    await commit(pool, other, [1])
    await pool.execute("DELETE FROM vouchers WHERE drop_no = $1 AND seq = 2", drop.drop_no)
    await number_all(pool)
    assert await rows_left(pool) == 1
    assert told(await feed(pool, 1)) == ["drop.opened", "drop.opened", "1..1"]
    assert await pool.fetchval("SELECT told_seq FROM drop_tellings WHERE drop_no = $1", drop.drop_no) == 0


async def test_a_turn_ends_early_when_vouchers_become_many(
    pool: "Pool[asyncpg.Record]", drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("couponsvc.outbox.windows.TURN_VOUCHERS_MAX_COUNT", 3)
    for _ in range(3):
        await commit(pool, drop, [1, 1])
    sequencer = Sequencer(pool)
    assert [(await sequencer.run_once(NOW)).outbox_rows for _ in range(3)] == [2, 1, 0]


async def test_of_many_sequencers_at_once_one_works_and_nothing_is_told_twice(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    sequencers = [Sequencer(pool) for _ in range(4)]
    for _ in range(10):
        await commit(pool, drop, [1] * 3)
        counts = await asyncio.gather(*(sequencer.run_once(NOW) for sequencer in sequencers))
        assert sum(found.outbox_rows for found in counts) == 1
    assert told(await feed(pool, 1))[1:] == [f"{n}..{n + 2}" for n in range(1, 31, 3)]


async def test_while_one_has_the_counter_another_does_not_wait(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await commit(pool, drop, [1])
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM event_counter FOR UPDATE")
        assert await asyncio.wait_for(Sequencer(pool).run_once(NOW), 1) == SequenceCounts()
    assert (await Sequencer(pool).run_once(NOW)).outbox_rows == 1


WAITS_FOR_A_LOCK = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.mark.parametrize("table", ["event_sequences", "events", "deliveries", "drop_tellings", "outbox"])
async def test_a_sequencer_whose_session_ends_in_the_middle_loses_nothing_and_repeats_nothing(
    pool: "Pool[asyncpg.Record]", drop: Drop, table: str
) -> None:
    """It is stopped where it writes to a table, by a lock, and its session is ended there."""
    await subscribe(pool, 1, ISSUED)
    await commit(pool, drop, [1, 1])
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        turn = asyncio.create_task(Sequencer(pool).run_once(NOW))
        async with asyncio.timeout(2):
            while (pid := await pool.fetchval(WAITS_FOR_A_LOCK)) is None:
                await asyncio.sleep(0.01)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await turn
    assert await rows_left(pool) == 1
    assert await queue(pool) == []
    assert await number_all(pool) == SequenceCounts(1, 1, 1)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..2"]
    assert [event.event_no for event in await feed(pool, 1)] == [1, 2]


async def test_event_rows_of_vouchers_read_them_by_number_whatever_postgres_knows_of_the_table(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    """A rush fills a table that was never analyzed, or was when it was small."""
    arguments = [1, NOW, ["voucher.issued"], [ISSUED], [1], [None], [None], [1], [2], ["{}"], [NOW]]
    for owner_count, analyze in ((300, True), (5_000, False), (5_000, True)):
        await commit(pool, drop, [1] * owner_count)
        if analyze:
            await pool.execute("ANALYZE vouchers")
        async with pool.acquire() as connection:
            for mode in ("force_custom_plan", "force_generic_plan"):
                await connection.execute(f"SET plan_cache_mode = {mode}")
                async with connection.transaction():
                    statement = await connection.prepare(Queries("couponsvc.outbox", "sequencing")["fan_out"])
                    plan = json.dumps(await statement.explain(*arguments))
                assert '"Index Name": "vouchers_pkey"' in plan, (owner_count, analyze, mode)
