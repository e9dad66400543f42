"""Reading events: pages end where they should, documents are those of the ledger."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from couponsvc import limits
from couponsvc.ledger.reading import find_voucher
from couponsvc.outbox.reading import EventReader, Untellable
from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop
from couponsvc.values.event import EventType
from couponsvc.values.voucher import Issued, Receipt
from tests.integration.outbox_scene import (
    MOMENT,
    NOW,
    admit,
    commit,
    commit_apart,
    documents,
    feed,
    hours,
    number_all,
    prepare,
    tell,
    told,
)
from tests.integration.scene import make_drop

pytestmark = pytest.mark.slow

Pool = asyncpg.Pool
SQL = Queries("couponsvc.outbox", "events")


@pytest.fixture
async def drop(pool: "Pool[asyncpg.Record]") -> Drop:
    await prepare(pool)
    return await make_drop(pool, quantity=100_000)


@pytest.fixture
def reader(pool: "Pool[asyncpg.Record]") -> EventReader:
    return EventReader(pool)


async def test_every_voucher_of_an_event_is_its_receipt_to_the_byte(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await commit(pool, drop, [1, 1], token='quote" and back\\slash'.replace(" ", "_"))
    await number_all(pool)
    await commit(pool, drop, [1], MOMENT + hours(1))
    await number_all(pool)
    receipt = Receipt(drop.drop_no, drop.drop_id, drop.terms)
    expected = []
    for seq in (1, 2, 3):
        voucher = await find_voucher(pool, drop.drop_no, seq)
        assert voucher is not None
        expected.append(
            receipt.render(
                Issued(voucher.person_token, voucher.out_request_no, seq, voucher.issued_ms, voucher.code)
            )
        )
    first, second = [event.body for event in await feed(pool, 1) if event.voucher_count]
    assert first.endswith(b'"vouchers":[' + b",".join(expected[:2]) + b"]}}")
    assert second.endswith(b'"vouchers":[' + expected[2] + b"]}}")


async def test_an_event_of_vouchers_of_several_moments_names_each_with_its_own(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    """Each has that of its own commit; within one, too, where it was copied in from elsewhere."""
    await commit(pool, drop, [1, 1])
    await commit(pool, drop, [1])
    await pool.execute("UPDATE vouchers SET issued_at = issued_at + seq * interval '1 second'")
    await number_all(pool)
    [document] = documents((await feed(pool, 1))[-1:])
    assert [(v["seq"], v["issued_at"][-7:]) for v in document["data"]["vouchers"]] == [
        (1, "00.123Z"), (2, "01.123Z"), (3, "02.123Z"),
    ]  # fmt: skip


async def test_the_same_number_gives_the_same_bytes_whatever_happens_to_the_drop(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    await commit(pool, drop, [1])
    await number_all(pool)
    before = await reader.by_numbers([1, 2])
    await pool.execute("UPDATE drops SET quantity = 7, closes_at = closes_at + interval '1 day', status = 1")
    await pool.execute("UPDATE partners SET name = 'Renamed'")
    assert await reader.by_numbers([1, 2]) == before


async def test_by_numbers_answers_in_order_and_leaves_out_what_is_not_there(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    for _ in range(3):
        await tell(pool, drop, "drop.paused")
    await number_all(pool)
    found = await reader.by_numbers([4, 99, 2, 1_000_001, 2])
    assert [event.event_no for event in found] == [2, 4]
    assert await reader.by_numbers([]) == []


async def test_a_page_begins_after_its_cursor_and_has_at_most_so_many_events(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    [second] = await admit(pool, drop, "bank-b")
    for _ in range(3):
        await tell(pool, drop, "drop.paused")
    await number_all(pool)
    first_page = await reader.page(second, 0, 2)
    rest = await reader.page(second, first_page[-1].event_no, 500)
    assert (len(first_page), len(rest)) == (2, 2)
    assert {event.partner_no for event in first_page + rest} == {second}
    assert await reader.page(second, rest[-1].event_no, 500) == []
    assert [e.event_no for e in await reader.all_after(3, 3)] == [4, 5, 6]


async def test_a_page_ends_where_vouchers_become_many_and_has_one_event_at_least(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit_apart(pool, drop, [1] * 2, [1] * 2, [1], [1] * 6)
    monkeypatch.setattr(limits, "FEED_PAGE_VOUCHERS_MAX_COUNT", 5)
    assert told(await reader.page(1, 0, 500)) == ["drop.opened", "1..2", "3..4", "5..5"]
    assert told(await reader.page(1, 4, 500)) == ["6..11"]
    assert told(await reader.all_after(1, 500)) == ["1..2", "3..4", "5..5"]


async def test_a_page_ends_before_a_kind_that_only_a_newer_version_knows(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    """Going past it would lose it for whoever pages with the number of the last event."""
    for _ in range(3):
        await tell(pool, drop, "drop.paused")
    await number_all(pool)
    await pool.execute("UPDATE events SET type = 'drop.enchanted' WHERE event_no = 3")
    assert [event.event_no for event in await reader.page(1, 0, 500)] == [1, 2]
    assert await reader.page(1, 2, 500) == []
    assert [event.event_no for event in await reader.by_numbers([2, 3, 4])] == [2, 4]


async def test_an_event_whose_vouchers_do_not_all_stand_is_never_shown_in_part(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    await commit_apart(pool, drop, [1, 1], [1])
    for damage in ("seq = 2", "seq = 1"):
        await pool.execute(f"DELETE FROM vouchers WHERE {damage}")
        with capture_logs() as logs:
            assert told(await reader.page(1, 0, 500)) == ["drop.opened"]
            assert told(await reader.by_numbers([1, 2, 3])) == ["drop.opened", "3..3"]
        assert {(log["log_level"], log["event_id"]) for log in logs} == {("error", "evt_2")}
        with pytest.raises(Untellable, match="evt_2") as raised:
            await reader.page(1, 1, 500)
        assert raised.value.event_no == 2
        assert await reader.all_after(1, 500) == []


async def test_what_is_dropped_between_its_number_and_its_reading_is_nothing_rather_than_a_gap(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(pool, drop, "drop.paused")
    await number_all(pool)
    await pool.execute("UPDATE event_counter SET last_event_no = 1000000")
    await prepare(pool)
    await tell(pool, drop, "drop.resumed")
    await number_all(pool)
    read = EventReader._written  # noqa: SLF001 - between the two statements of a page

    async def drop_first(reader: EventReader, event_nos: Sequence[int]) -> Any:
        await pool.execute("DROP TABLE IF EXISTS events_0")
        return await read(reader, event_nos)

    monkeypatch.setattr(EventReader, "_written", drop_first)
    assert await reader.page(1, 0, 500) == []
    assert [event.event_no for event in await reader.page(1, 0, 500)] == [1_000_001]


async def test_an_event_names_what_it_is_and_when(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    await commit(pool, drop, [1, 1])
    await number_all(pool)
    [event] = await reader.by_numbers([2])
    assert (event.event_id, event.partner_no, event.drop_no) == ("evt_2", 1, drop.drop_no)
    assert (event.kind, event.voucher_count) == (EventType.VOUCHER_ISSUED, 2)
    assert event.occurred_ms == round(MOMENT.timestamp() * 1000)
    assert json.loads(event.body)["time"] == "2026-10-01T01:59:59.123Z"


async def test_the_newest_number_is_that_of_the_partner(
    pool: "Pool[asyncpg.Record]", drop: Drop, reader: EventReader
) -> None:
    [second] = await admit(pool, drop, "bank-b")
    assert (await reader.standing(1), await reader.standing(second)) == ((0, 0), (0, 0))
    await number_all(pool)
    await commit(pool, drop, [1])
    await number_all(pool)
    assert (await reader.standing(1), await reader.standing(second)) == ((3, 3), (3, 2))


MANY_EVENTS = """
INSERT INTO events (event_no, partner_no, drop_no, sequence, type, occurred_at)
SELECT n, 1 + (n = ANY ('{17, 999990, 1000010, 1000020}'))::int, 1, n, 'drop.paused', $1
FROM (SELECT generate_series(1, 5000) UNION ALL SELECT generate_series(995000, 1005000)) AS numbers (n)
"""
MANY_VOUCHERS = """
INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no, code)
SELECT 1, n, 1 + n % 2, 1, now(), 'p' || n, 'n' || n, 'C' FROM generate_series(1, $1::int) n
"""


def scans_of(node: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """What a plan really read: index (or kind of scan), and how many rows it touched."""
    if "Relation Name" in node and node["Actual Loops"] > 0:
        touched = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        yield node.get("Index Name", f"{node['Node Type']} {node['Relation Name']}"), round(touched)
    for child in node.get("Plans", ()):
        yield from scans_of(child)


@pytest.mark.parametrize(
    ("name", "arguments", "scans"),
    [
        ("page_of_partner", (2, 0, 500, 5_000), {"events_0_partner": 2, "events_1_partner": 2}),
        ("page_of_partner", (2, 1_000_010, 500, 5_000), {"events_1_partner": 1}),
        ("page_of_partner", (1, 1_004_000, 10, 5_000), {"events_1_partner": 10}),
        ("page_of_all", (999_990, 20, 5_000), {"events_0_pkey": 9, "events_1_pkey": 11}),
        ("page_of_all", (1_000_000, 500, 5_000), {"events_1_pkey": 500}),
        ("standing_of_partner", (2,), {"events_0_partner": 1, "events_1_partner": 1}),
        ("by_numbers", ([1_000_010],), {"events_1_pkey": 1}),
    ],
)
async def test_reading_touches_only_what_it_answers_and_partitions_that_have_it(
    pool: "Pool[asyncpg.Record]", drop: Drop, name: str, arguments: tuple[object, ...], scans: dict[str, int]
) -> None:
    """One partner has nearly everything; the other must not pay for that."""
    await admit(pool, drop, "bank-b")
    await pool.execute("UPDATE event_counter SET last_event_no = 1005000")
    await prepare(pool)
    await pool.execute(MANY_EVENTS, NOW)
    await pool.execute("ANALYZE events, partners, drops")
    async with pool.acquire() as connection:
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}")
            statement = await connection.prepare(SQL[name])
            [explained] = await statement.explain(*arguments, analyze=True)
            found = dict(scans_of(explained["Plan"]))
            of_events = {
                index.removesuffix("_no_event_no_idx"): touched
                for index, touched in found.items()
                if "events" in index and touched
            }
            assert of_events == scans, (mode, explained)


@pytest.mark.parametrize("statistics", ["none", "of an empty table and then of all"])
@pytest.mark.parametrize("voucher_count", [2_000, 20_000])
async def test_vouchers_of_an_event_are_read_by_number_whatever_postgres_knows_of_the_table(
    pool: "Pool[asyncpg.Record]", drop: Drop, voucher_count: int, statistics: str
) -> None:
    """A rush fills a table that was never analyzed; by the partner's index it would read all of them."""
    assert drop.drop_no == 1
    if statistics != "none":
        await pool.execute("ANALYZE")
    await pool.execute(MANY_VOUCHERS, voucher_count)
    if statistics != "none":
        await pool.execute("ANALYZE")
    async with pool.acquire() as connection:
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}")
            explained = json.dumps(await (await connection.prepare(SQL["by_numbers"])).explain([1, 2, 3]))
            assert '"Index Name": "vouchers_pkey"' in explained, (mode, explained)
            assert "vouchers_person_limit" not in explained
