"""Commits of one turn become full events; what a partner reads of them is the ledger, in its order."""

from datetime import timedelta

import asyncpg
import pytest

from couponsvc import limits
from couponsvc.outbox.sequencing import SequenceCounts, Sequencer
from couponsvc.reconcile.proofs import prove_events, prove_outbox
from couponsvc.values.drop import Drop
from couponsvc.values.event import Event
from couponsvc.values.moment import rfc3339, unix_ms
from tests.integration.outbox_scene import (
    MOMENT,
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
ISSUED = "couponsvc.voucher.issued.v1"
FULL = limits.EVENT_VOUCHERS_MAX_COUNT


@pytest.fixture
async def drop(pool: "Pool[asyncpg.Record]") -> Drop:
    """Open since long ago, for partner 1, who was told so."""
    await prepare(pool)
    drop = await make_drop(pool, quantity=100_000)
    assert await number_all(pool) == SequenceCounts(0, 1, 0)
    return drop


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("count", [499, 500, 501, 1_200])
async def test_many_small_commits_of_a_turn_arrive_as_full_events_each_delivered_once(
    pool: "Pool[asyncpg.Record]", drop: Drop, monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    monkeypatch.setattr(limits, "SEQUENCE_TURN_MAX_COUNT", count)
    await subscribe(pool, 1, ISSUED)
    async with pool.acquire() as connection, connection.transaction():
        for first in range(0, count, size):
            moment = MOMENT + timedelta(milliseconds=first)
            await commit(connection, drop, [1] * min(size, count - first), moment)
    expected = [f"{first}..{min(first + FULL - 1, count)}" for first in range(1, count + 1, FULL)]
    rows_count = -(-count // size)
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(rows_count, len(expected), len(expected))
    events = await feed(pool, 1)
    assert told(events) == ["drop.opened", *expected]
    assert [event.event_no for event in events] == list(range(1, len(events) + 1))
    for document in documents(events[1:]):
        assert document["time"] == document["data"]["vouchers"][-1]["issued_at"], "its last commit's"
    await assert_read_as_written(pool, 1, drop, events)


@pytest.mark.parametrize("kind", ["drop.paused", "drop.sold_out"])
async def test_what_happens_to_the_drop_between_commits_keeps_them_apart_and_in_order(
    pool: "Pool[asyncpg.Record]", drop: Drop, kind: str
) -> None:
    await commit(pool, drop, [1])
    await commit(pool, drop, [1, 1])
    await tell(pool, drop, kind, {"quantity": 3} if kind == "drop.sold_out" else None)
    await commit(pool, drop, [1])
    await commit(pool, drop, [1])
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(outbox_rows=5, events=3)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..3", kind, "4..5"]


async def test_turns_are_merged_each_for_itself(pool: "Pool[asyncpg.Record]", drop: Drop) -> None:
    """What was numbered is never written again: a partner may have it already."""
    for _ in range(2):
        for _ in range(3):
            await commit(pool, drop, [1])
        await number_all(pool)
    assert told(await feed(pool, 1)) == ["drop.opened", "1..3", "4..6"]


@pytest.mark.parametrize("places", [(3, 2, 1), (1, 2, 1), (2, 1, 2)], ids=str)
async def test_vouchers_are_told_in_order_of_their_numbers_even_if_the_clock_was_set_back(
    pool: "Pool[asyncpg.Record]", drop: Drop, places: tuple[int, ...]
) -> None:
    for place in places:
        await commit(pool, drop, [1, 1], MOMENT + timedelta(seconds=place))
    await number_all(pool)
    events = await feed(pool, 1)
    assert told(events) == ["drop.opened", "1..6"]
    await assert_read_as_written(pool, 1, drop, events)


async def test_drops_and_partners_that_alternate_are_told_each_for_itself_with_every_voucher_once(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    """Three partners in two drops, whose rows lie in turn in the outbox; one drop is paused in between."""
    other = await make_drop(pool, "drop-b", quantity=100_000)
    for one in (drop, other):
        second, third = await admit(pool, one, "bank-b", "bank-c")
    await number_all(pool)
    before = {partner_no: len(await feed(pool, partner_no)) for partner_no in (1, second, third)}
    async with pool.acquire() as connection, connection.transaction():
        for n in range(160):
            moment = MOMENT + timedelta(milliseconds=n)
            await commit(connection, drop, [1, second, 1, 1][: 1 + n % 4], moment)
            await commit(connection, other, [(1, second, third)[n % 3]] * 4, moment)
            if n == 99:
                await tell(connection, other, "drop.paused")
    assert (await Sequencer(pool).run_once(NOW)).outbox_rows == 321
    news = {partner_no: (await feed(pool, partner_no))[count:] for partner_no, count in before.items()}
    # drop-a: 400 vouchers in one piece; drop-b: 400, the pause, 240.
    of_a, of_b = [
        {partner_no: told([event for event in events if event.drop_no == one.drop_no])
         for partner_no, events in news.items()}
        for one in (drop, other)
    ]  # fmt: skip
    assert of_a == {1: ["1..400"], second: ["3..398"], third: []}
    assert of_b == {
        1: ["1..400", "drop.paused", "409..640"],
        second: ["5..392", "drop.paused", "401..632"],
        third: ["9..396", "drop.paused", "405..636"],
    }
    for one in (drop, other):
        for partner_no, events in news.items():
            await assert_read_as_written(pool, partner_no, one, events)
        [proof] = (await prove_outbox(pool, {one.drop_no: 0})).values()
        assert proof.findings + await prove_events(pool, one.drop_no) == []
        assert proof.proven_seq == {drop.drop_no: 400, other.drop_no: 640}[one.drop_no]


async def assert_read_as_written(
    pool: "Pool[asyncpg.Record]", partner_no: int, drop: Drop, events: list[Event]
) -> None:
    """A partner's events of a drop: its vouchers once and in order, each with its own commit's moment."""
    mine = [event for event in events if event.drop_no == drop.drop_no]
    found = documents(mine)
    rows = await pool.fetch(
        "SELECT seq, code, person_token, issued_at FROM vouchers WHERE drop_no = $1 AND partner_no = $2"
        " ORDER BY seq",
        drop.drop_no,
        partner_no,
    )
    vouchers = [voucher for document in found for voucher in document["data"].get("vouchers", ())]
    assert [
        (voucher["seq"], voucher["code"], voucher["person_token"], voucher["issued_at"])
        for voucher in vouchers
    ] == [(row["seq"], row["code"], row["person_token"], rfc3339(unix_ms(row["issued_at"]))) for row in rows]
    sequences = [int(document["sequence"]) for document in found]
    assert sequences == list(range(sequences[0], sequences[0] + len(found))) if found else not rows
    for event, document in zip(mine, found, strict=True):
        if event.voucher_count:
            assert event.voucher_count == len(document["data"]["vouchers"]) <= FULL
