"""The feed: every event of a partner once, in order, whoever commits meanwhile; and waiting for it."""

import asyncio
import base64
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.api import event_waiting
from couponsvc.outbox.reading import EventReader
from couponsvc.programs import admission
from couponsvc.programs.admission import CredentialRequest
from couponsvc.settings import Settings
from couponsvc.support.signing import HmacKey, sign
from couponsvc.values.event import Event, EventType
from tests.integration.feed import (
    LISTENERS,
    everything,
    issue,
    issue_apart,
    listening,
    number,
    numbering,
    page,
    prepare,
)
from tests.integration.house import House, code_of

PATHS = ("/v1/events", "/v1/events/stream")
SOON_S = 1.0
"""Coarse: a wake takes milliseconds, a lost one two seconds."""


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    await prepare(pool)
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def waiters(house: House, count: int) -> None:
    async with asyncio.timeout(5):
        while house.services.event_waits.count != count:
            await asyncio.sleep(0.005)


def vouchers_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [voucher for event in events for voucher in event["data"].get("vouchers", [])]


async def test_the_first_page_begins_at_the_beginning_and_next_leads_on(house: House) -> None:
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", 1, 2, 3)
    whole = await page(house)
    assert [event["type"] for event in whole["events"][-4:]] == [
        "couponsvc.drop.opened.v1",
        *["couponsvc.voucher.issued.v1"] * 3,
    ]
    assert [len(event["data"].get("vouchers", [])) for event in whole["events"][-4:]] == [0, 1, 2, 3]
    assert whole["next"] == whole["events"][-1]["id"].removeprefix("evt_")
    assert await everything(house, limit=1) == whole["events"]
    assert await page(house, f"?after={whole['next']}") == {"events": [], "next": whole["next"]}


async def test_a_partner_without_events_gets_a_cursor_all_the_same(house: House) -> None:
    assert await page(house) == {"events": [], "next": "0"}
    assert await page(house, "?after=0") == {"events": [], "next": "0"}
    await house.drop(partners=["bank-b"])
    await number(house.pool)
    newest = await house.pool.fetchval("SELECT last_event_no FROM event_counter")
    assert newest > 0
    assert await page(house) == {"events": [], "next": str(newest)}


async def test_two_partners_never_see_each_others_events(house: House) -> None:
    await house.drop(quantity=100, partners=["bank-a", "bank-b"])
    for n in range(6):
        await issue(house.pool, "wed", 2, "bank-a" if n % 2 else "bank-b")
    await number(house.pool)
    seqs = {}
    for partner in ("bank-a", "bank-b"):
        events = await everything(house, partner)
        assert {event["subject"] for event in events} == {partner}
        assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
        seqs[partner] = [voucher["seq"] for voucher in vouchers_of(events)]
    assert seqs == {"bank-a": [3, 4, 7, 8, 11, 12], "bank-b": [1, 2, 5, 6, 9, 10]}


async def test_the_feed_has_the_bytes_of_the_vouchers_that_were_answered(house: House) -> None:
    await house.drop(quantity=100)
    await house.issue("wed", "p1", 'q"\\', "p3")
    await number(house.pool)
    answer = await house.call("GET", "/v1/events", by="bank-a")
    for seq in (1, 2, 3):
        voucher = await house.call("GET", f"/v1/vouchers/vch_1_{seq}", by="bank-a")
        assert voucher.content in answer.content


async def test_events_are_for_partners_who_may_read(house: House) -> None:
    request = CredentialRequest("partner", "bearer", "bank-a", scopes=frozenset({"grab"}))
    made = await admission.create_key(house.pool, house.services.master_key, "test", request)
    assert made.token is not None
    house.tokens["grabs only"] = made.token
    for path in PATHS:
        for who in ("operator", "auditor"):
            refused = await house.call("GET", path, by=who)
            assert code_of(refused) == "forbidden"
            assert "couponsvc events tail" in refused.json()["detail"]
        assert code_of(await house.call("GET", path, by="grabs only")) == "forbidden"
        assert code_of(await house.call("GET", path, by=None)) == "unauthenticated"


async def test_a_cursor_that_is_none_of_ours_is_refused(house: House) -> None:
    for path in PATHS:
        for cursor in ("", "-1", "1.0", "01", "evt_1", "٣", "1%0A", "9223372036854775808"):
            answer = await house.call("GET", f"{path}?after={cursor}", by="bank-a")
            assert code_of(answer) == "invalid_request", (path, cursor)


async def test_a_page_and_a_wait_have_bounds(house: House) -> None:
    for query in ("limit=0", "limit=501", "limit=1_0", "wait=21", "wait=-1", "wait=0.5"):
        answer = await house.call("GET", f"/v1/events?{query}", by="bank-a")
        assert code_of(answer) == "invalid_request", query


async def test_a_malformed_last_event_id_is_refused(house: House) -> None:
    answer = await house.call("GET", "/v1/events/stream", by="bank-a", headers={"last-event-id": "x"})
    assert code_of(answer) == "invalid_request"


async def test_a_signature_covers_the_query(house: House) -> None:
    await house.drop()
    await number(house.pool)
    made = await admission.create_key(
        house.pool, house.services.master_key, "test", CredentialRequest("partner", "hmac-sha256", "bank-a")
    )
    assert made.secret is not None
    key = HmacKey(made.key_id, base64.b64decode(made.secret))
    signed = sign(key, b"GET", b"/v1/events", b"after=0&wait=1", b"", created_s=int(time.time()))
    headers = {name.decode(): value.decode() for name, value in signed}
    found = await house.call("GET", "/v1/events?after=0&wait=1", by=None, headers=headers)
    assert found.json()["events"]
    other = await house.call("GET", "/v1/events?after=1&wait=1", by=None, headers=headers)
    assert code_of(other) == "unauthenticated"


# --- waiting ------------------------------------------------------------------------------------
async def test_a_wait_ends_as_soon_as_there_is_an_event(house: House) -> None:
    await house.drop(quantity=100)
    await number(house.pool)
    cursor = (await page(house))["next"]
    async with listening(house):
        for _ in range(3):
            waiting = asyncio.create_task(page(house, f"?after={cursor}&wait=20"))
            await waiters(house, 1)
            await issue(house.pool, "wed")
            began = monotonic()
            await number(house.pool)
            found = await waiting
            assert monotonic() - began < SOON_S
            assert len(found["events"]) == 1
            cursor = found["next"]
    await waiters(house, 0)


async def test_an_empty_wait_ends_on_time_whatever_others_hear(house: House) -> None:
    await house.drop(quantity=100, partners=["bank-a", "bank-b"])
    await number(house.pool)
    cursor = (await page(house))["next"]
    async with listening(house):
        began = monotonic()
        waiting = asyncio.create_task(page(house, f"?after={cursor}&wait=1"))
        await waiters(house, 1)
        await issue(house.pool, "wed", 1, "bank-b")
        await number(house.pool)
        found = await waiting
    assert found["events"] == []
    assert 0.9 < monotonic() - began < 1 + SOON_S


async def test_what_comes_between_look_and_wait_is_not_missed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is numbered, and its notification heard, after an empty page was read and before the wait."""
    await house.drop()
    read_page = EventReader.page
    reads = 0

    async def read_and_then_number(
        reader: EventReader, partner_no: int, after: int, limit: int
    ) -> list[Event]:
        nonlocal reads
        reads += 1
        found = await read_page(reader, partner_no, after, limit)
        if reads == 2:  # the first look is before the seat is taken, the second one after
            assert house.services.event_waits.count == 1
            await number(house.pool)
            await asyncio.sleep(0.2)
        return found

    async with listening(house):
        monkeypatch.setattr(EventReader, "page", read_and_then_number)
        began = monotonic()
        assert (await page(house, "?after=0&wait=20"))["events"]
        assert monotonic() - began < SOON_S
    assert reads == 3


async def test_what_came_before_the_wait_is_not_waited_for(house: House) -> None:
    await house.drop()
    await number(house.pool)
    began = monotonic()
    assert (await page(house, "?wait=20"))["events"]
    assert monotonic() - began < SOON_S


async def test_a_notification_that_is_lost_only_delays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that appear without a word are noticed by the counter; a cut connection is made again."""
    monkeypatch.setattr(event_waiting, "RECONNECT_EVERY_S", 0.05)
    await house.drop()
    async with listening(house):
        waiting = asyncio.create_task(page(house, "?after=0&wait=20"))
        await waiters(house, 1)
        await house.pool.execute(LISTENERS.replace("count(*)", "pg_terminate_backend(pid)"))
        await asyncio.sleep(0.01)
        began = monotonic()
        await number(house.pool)
        assert (await waiting)["events"]
        assert monotonic() - began < event_waiting.LOOK_EVERY_S + SOON_S
        cursor = (await page(house))["next"]
        waiting = asyncio.create_task(page(house, f"?after={cursor}&wait=20"))
        await waiters(house, 1)
        began = monotonic()
        await house.pool.execute(
            "WITH counted AS (UPDATE event_counter SET last_event_no = last_event_no + 1"
            " RETURNING last_event_no)"
            " INSERT INTO events (event_no, partner_no, drop_no, sequence, type, occurred_at)"
            " SELECT last_event_no, 1, 1, 2, 'drop.paused', now() FROM counted"
        )
        assert (await waiting)["events"]
        assert monotonic() - began < event_waiting.LOOK_EVERY_S + SOON_S


async def test_waiters_are_bounded_for_each_partner_and_for_all(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FEED_WAITERS_PER_PARTNER_MAX_COUNT", 2)
    monkeypatch.setattr(limits, "FEED_WAITERS_MAX_COUNT", 3)
    waiting = [asyncio.create_task(page(house, "?wait=20")) for _ in range(2)]
    await waiters(house, 2)
    assert code_of(await house.call("GET", "/v1/events?wait=20", by="bank-a")) == "rate_limited"
    assert code_of(await house.call("GET", "/v1/events/stream", by="bank-a")) == "rate_limited"
    waiting.append(asyncio.create_task(page(house, "?wait=20", "bank-b")))
    await waiters(house, 3)
    assert code_of(await house.call("GET", "/v1/events?wait=20", by="bank-b")) == "overloaded"
    assert await page(house, "", "bank-b") == {"events": [], "next": "0"}, "who does not wait is served"
    house.services.event_waits.end()
    assert [(await ended)["events"] for ended in waiting] == [[], [], []]
    await waiters(house, 0)


async def test_nobody_waits_once_the_process_stops(house: House) -> None:
    house.services.event_waits.end()
    began = monotonic()
    assert await page(house, "?wait=20") == {"events": [], "next": "0"}
    assert monotonic() - began < SOON_S


async def test_a_key_that_is_revoked_meanwhile_hears_nothing(house: House) -> None:
    await house.drop()
    made = await admission.create_key(
        house.pool, house.services.master_key, "test", CredentialRequest("partner", "bearer", "bank-a")
    )
    assert made.token is not None
    house.tokens["short"] = made.token
    async with listening(house):
        waiting = asyncio.create_task(house.call("GET", "/v1/events?wait=20", by="short"))
        await waiters(house, 1)
        await admission.revoke_key(house.pool, "test", made.key_id)
        await house.services.authenticator.load()
        await number(house.pool)
        assert code_of(await waiting) == "unauthenticated"


async def test_a_wait_is_no_slow_answer(house: House) -> None:
    await page(house, "?wait=1")
    metrics = (await house.call("GET", "/metrics", by=None)).text
    sums = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith('couponsvc_http_request_seconds_sum{route="/v1/events"}')
    ]
    counts = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith('couponsvc_http_request_seconds_count{route="/v1/events"}')
    ]
    assert counts[0] >= 1
    assert sums[0] / counts[0] < 0.5


# --- the whole ----------------------------------------------------------------------------------
async def test_a_long_poll_misses_nothing_while_many_commit(house: House) -> None:
    """Six writers in three drops, a relay that numbers, and one reader that only follows `next`."""
    drops = ("mon", "tue", "wed")
    for drop_id in drops:
        await house.drop(drop_id, quantity=1_000, partners=["bank-a", "bank-b"])
    writers_count, batches_count = 6, 12

    async def write(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        for _ in range(batches_count):
            await issue(
                house.pool, chance.choice(drops), chance.randint(1, 5), chance.choice(["bank-a", "bank-b"])
            )
            await asyncio.sleep(chance.random() / 100)

    events: list[dict[str, Any]] = []
    async with listening(house), numbering(house.pool):
        writing = asyncio.gather(*(write(seed) for seed in range(writers_count)))
        query = ""
        while not writing.done():
            found = await page(house, f"?wait=1&limit=7{query}")
            events += found["events"]
            query = f"&after={found['next']}"
        await writing
        own_count = await house.pool.fetchval("SELECT count(*) FROM vouchers WHERE partner_no = 1")
        async with asyncio.timeout(20):
            while len(vouchers_of(events)) < own_count:
                found = await page(house, f"?wait=1{query}")
                events += found["events"]
                query = f"&after={found['next']}"
    numbers = [int(event["id"].removeprefix("evt_")) for event in events]
    assert numbers == sorted(set(numbers))
    for drop_id in drops:
        of_drop = [event for event in events if event["data"]["drop_id"] == drop_id]
        assert [int(event["sequence"]) for event in of_drop] == list(range(1, len(of_drop) + 1))
        seqs = [voucher["seq"] for voucher in vouchers_of(of_drop)]
        assert seqs == sorted(seqs)
    assert events == await everything(house)


async def test_a_ledger_rebuilt_from_the_feed_equals_ours(house: House) -> None:
    await house.drop("tue", quantity=2_000, partners=["bank-a", "bank-b"])
    await house.drop("wed", quantity=30)
    for count in (700, 3, 40):
        await issue(house.pool, "tue", count, "bank-a")
    await issue(house.pool, "tue", 11, "bank-b")
    await house.issue("wed", "p1", "p2")
    await house.call("POST", "/v1/drops/wed/pause")
    await house.call("POST", "/v1/drops/wed/resume")
    await house.call("POST", "/v1/drops/wed/restock", {"current_quantity": 30, "add": 5})
    await house.call("POST", "/v1/drops/wed/close")
    await number(house.pool)
    rebuilt: dict[str, dict[str, Any]] = {}
    states: dict[str, list[str]] = {"tue": [], "wed": []}
    for event in await everything(house, limit=3):
        kind = event["type"].removeprefix("couponsvc.").removesuffix(".v1")
        states[event["data"]["drop_id"]].append(kind)
        for voucher in event["data"].get("vouchers", []):
            assert voucher["voucher_id"] not in rebuilt
            rebuilt[voucher["voucher_id"]] = voucher
    ledger: dict[str, dict[str, Any]] = {}
    for drop_id in ("tue", "wed"):
        exported = await house.call("GET", f"/v1/drops/{drop_id}/ledger", by="auditor")
        for line in exported.text.splitlines():
            voucher = json.loads(line)
            ledger[voucher["voucher_id"]] = voucher
    others = await house.pool.fetch("SELECT drop_no, seq FROM vouchers WHERE partner_no = 2")
    for row in others:
        del ledger[f"vch_{row['drop_no']}_{row['seq']}"]
    assert rebuilt == ledger
    assert "drop.opened" in states["wed"][:2]
    with contextlib.suppress(ValueError):
        states["wed"].remove("drop.ended")
    assert states["wed"][-4:] == ["drop.paused", "drop.resumed", "drop.restocked", "drop.closed"]


async def test_every_type_has_its_schema_and_nothing_else_is_served(house: House) -> None:
    for kind in EventType:
        answer = await house.call("GET", f"/schemas/{kind.public}.json", by=None)
        assert answer.status_code == 200, kind
        assert answer.headers["content-type"] == "application/schema+json"
        assert answer.json()["$id"].endswith(kind.public)
    for name in ("couponsvc.voucher.issued.v2.json", "couponsvc.voucher.issued.v1", "..%2Freading.py", "x"):
        assert code_of(await house.call("GET", f"/schemas/{name}", by=None)) == "not_found"
