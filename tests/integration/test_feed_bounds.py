"""What the feed refuses, because events may be missing: what was dropped, what was never numbered here."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.outbox.reading import EventReader
from couponsvc.settings import Settings
from couponsvc.support import metrics
from couponsvc.values.event import Event
from tests.integration.feed import forget_the_first_million, issue, issue_apart, number, page, prepare
from tests.integration.house import House, code_of

PATHS = ("/v1/events", "/v1/events/stream")
SET_ASIDE = "CREATE TABLE set_aside AS SELECT * FROM vouchers WHERE seq = 2"
UNWRITABLE = 'couponsvc_events_unwritable_total{reason="vouchers_missing"} '


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    """Its process does not listen for events: no answer may depend on that."""
    await prepare(pool)
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def newest(house: House) -> int:
    found: int = await house.pool.fetchval("SELECT last_event_no FROM event_counter")
    return found


# --- what is no longer kept ---------------------------------------------------------------------
async def test_a_cursor_older_than_what_is_kept_is_gone_and_starting_again_is_not(house: House) -> None:
    await house.drop(quantity=100)
    await issue(house.pool, "wed")
    await number(house.pool)
    cursor = (await page(house))["next"]
    await forget_the_first_million(house)
    await issue(house.pool, "wed")
    await number(house.pool)
    for query in (f"?after={cursor}", "?after=0", "?after=0&wait=20"):
        for path in PATHS[: 1 + ("wait" not in query)]:
            gone = await house.call("GET", path + query, by="bank-a")
            assert gone.status_code == 410
            assert code_of(gone) == "events_gone"
            assert "without after" in gone.json()["detail"]
    kept = await page(house)
    assert [voucher["seq"] for event in kept["events"] for voucher in event["data"]["vouchers"]] == [2]
    assert await page(house, f"?after={kept['next']}") == {"events": [], "next": kept["next"]}


async def test_a_partition_dropped_while_a_request_waits_is_noticed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look finds nothing, the second one, after the drop, what is kept; both are checked."""
    await house.drop(quantity=100)
    await number(house.pool)
    read_page = EventReader.page
    reads = 0

    async def forget_and_read(reader: EventReader, partner_no: int, after: int, limit: int) -> list[Event]:
        nonlocal reads
        reads += 1
        if reads == 2:
            await forget_the_first_million(house)
            await issue(house.pool, "wed")
            await number(house.pool)
        return await read_page(reader, partner_no, after, limit)

    cursor = (await page(house))["next"]
    monkeypatch.setattr(EventReader, "page", forget_and_read)
    gone = await house.call("GET", f"/v1/events?wait=20&after={cursor}", by="bank-a")
    assert reads == 2
    assert code_of(gone) == "events_gone"


async def test_a_quiet_reader_who_comes_back_keeps_clear_of_what_is_dropped(house: House) -> None:
    """Its cursor moves on with the events of others, as far as it has missed none of its own."""
    await house.drop(quantity=100, partners=["bank-a", "bank-b"])
    await number(house.pool)
    cursor = (await page(house))["next"]
    await issue(house.pool, "wed", 1, "bank-b")
    await number(house.pool)
    quiet = await page(house, f"?after={cursor}")
    assert quiet["events"] == []
    assert int(quiet["next"]) == await newest(house) > int(cursor)
    await issue(house.pool, "wed", 1, "bank-a")
    await number(house.pool)
    assert len((await page(house, f"?after={quiet['next']}"))["events"]) == 1


async def test_a_new_partner_gets_a_cursor_that_its_next_call_may_use(house: House) -> None:
    await forget_the_first_million(house)
    first = await page(house, by="bank-b")
    assert first == {"events": [], "next": "1000000"}
    assert await page(house, f"?after={first['next']}", by="bank-b") == first


async def test_the_cursor_never_passes_an_event_that_this_version_cannot_tell(house: House) -> None:
    await house.drop()
    await number(house.pool)
    cursor = (await page(house))["next"]
    await house.pool.execute(
        "INSERT INTO events (event_no, partner_no, drop_no, sequence, type, occurred_at)"
        " SELECT last_event_no + 1, 1, 1, 99, 'voucher.dreamt', now() FROM event_counter"
    )
    await house.pool.execute("UPDATE event_counter SET last_event_no = last_event_no + 1")
    assert await page(house, f"?after={cursor}") == {"events": [], "next": cursor}


# --- what was never numbered here ---------------------------------------------------------------
@pytest.mark.parametrize("cached_newest", [0, 1_000])
async def test_a_cursor_beyond_the_newest_event_is_refused_whatever_this_process_remembers(
    house: House, cached_newest: int
) -> None:
    """As after Postgres was restored from an older copy: 6 and 7 will be numbered again, for other events."""
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", *[1] * 3)
    house.services.event_waits.newest_event_no = cached_newest
    beyond = await newest(house) + 2
    for path in PATHS:
        refused = await house.call("GET", f"{path}?after={beyond}", by="bank-a")
        assert refused.status_code == 410
        assert code_of(refused) == "events_gone"
        assert "beyond the newest event" in refused.json()["detail"]
    last = await house.call("GET", PATHS[1], by="bank-a", headers={"last-event-id": str(beyond)})
    assert code_of(last) == "events_gone"


async def test_the_newest_cursor_is_good_in_a_process_that_does_not_know_it_yet(house: House) -> None:
    await house.drop(quantity=100)
    await number(house.pool)
    cursor = (await page(house))["next"]
    assert house.services.event_waits.newest_event_no < int(cursor)
    assert await page(house, f"?after={cursor}") == {"events": [], "next": cursor}


# --- what is damaged ----------------------------------------------------------------------------
async def test_an_event_whose_vouchers_do_not_stand_is_told_of_as_a_problem_and_counted(house: House) -> None:
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", 1, 1, 1)
    await house.pool.execute(SET_ASIDE)
    await house.pool.execute("DELETE FROM vouchers WHERE seq = 2")
    before = await page(house)
    assert [voucher["seq"] for voucher in before["events"][-1]["data"]["vouchers"]] == [1]
    damaged = f"evt_{int(before['next']) + 1}"
    counted = unwritable_count()
    for path in (*PATHS, "/v1/events?wait=20"):
        sign = "&" if "?" in path else "?"
        stopped = await house.call("GET", f"{path}{sign}after={before['next']}", by="bank-a")
        assert stopped.status_code == 503
        assert code_of(stopped) == "ledger_unavailable"
        assert stopped.json()["retryable"]
        assert damaged in stopped.json()["detail"]
    assert unwritable_count() == counted + 3
    await house.pool.execute("INSERT INTO vouchers SELECT * FROM set_aside")
    assert len((await page(house, f"?after={before['next']}"))["events"]) == 2


async def test_an_event_that_cannot_be_rendered_stops_its_partner_in_the_same_way(house: House) -> None:
    await house.pool.execute(
        "WITH counted AS (UPDATE event_counter SET last_event_no = 1 RETURNING last_event_no)"
        " INSERT INTO events (event_no, partner_no, type, data, occurred_at)"
        " SELECT last_event_no, 1, 'webhook.test', 'no JSON', now() FROM counted"
    )
    for path in PATHS:
        stopped = await house.call("GET", path, by="bank-a")
        assert code_of(stopped) == "ledger_unavailable"
        assert "evt_1 " in stopped.json()["detail"]


def unwritable_count() -> float:
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith(UNWRITABLE)]
    return float(lines[0].removeprefix(UNWRITABLE)) if lines else 0.0
