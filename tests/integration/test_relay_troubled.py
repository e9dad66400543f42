"""Endpoints that fail for a while or for good: what counts as a failure, what a success makes up for."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta
from time import monotonic

import pytest

from couponsvc import limits
from couponsvc.outbox import leasing, retries, settling, tending
from couponsvc.outbox.leasing import Lease, Pool, RelayNumber, give_back, lease_due
from couponsvc.outbox.partitions import _LOCK_KEY
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.outbox.settling import Remainder, Settler, judge, put_off
from couponsvc.outbox.subscriptions import request_test
from couponsvc.settings import Settings
from couponsvc.support.guarded_http import PostResult
from couponsvc.values.event import EventType
from tests.integration.scene import issue, make_drop
from tests.receivers import Received, Receiver, attempts, queue, subscribe, subscription
from tests.relays import Clock, at_work, opened, tell

pytestmark = pytest.mark.slow  # relays at work, waits of seconds

ISSUED = [EventType.VOUCHER_ISSUED.public]
REFUSED, ACCEPTED, GONE = PostResult(503, "no", 3), PostResult(200, "", 3), PostResult(410, "gone", 3)
PATIENCE_S = 10.0


async def until(claim: Callable[[], Awaitable[bool]], what: str) -> None:
    give_up_at = monotonic() + PATIENCE_S
    while not await claim():
        assert monotonic() < give_up_at, f"still not so: {what}"
        await asyncio.sleep(0.02)


def seq_of(request: Received) -> int:
    seq: int = request.event["data"]["vouchers"][0]["seq"]
    return seq


async def lease(pool: Pool, clock: Clock, relay_no: int = 7, room: int = 8) -> list[Lease]:
    return await lease_due(pool, relay_no, clock(), room=room, rooms={}, room_elsewhere=room, probe_room=room)


async def waiting_endpoint(settings: Settings, pool: Pool, clock: Clock, events: int) -> int:
    """A subscription with so many events due, to nobody; its number."""
    drop = await make_drop(pool, quantity=100)
    async with opened(settings, clock):  # makes the partitions
        subscribed = await subscribe(pool, "http://127.0.0.1:1/", types=ISSUED)
    await tell(pool, drop, events, clock())
    return subscribed.subscription_no


async def fail(pool: Pool, failure_count: int, clock: Clock) -> None:
    await pool.execute("UPDATE subscriptions SET failure_count = $1, held_until = $2", failure_count, clock())


@pytest.mark.parametrize("ending", ["its relay died", "it was given back", "it could not be sent"])
async def test_a_probe_that_was_not_made_holds_nothing_back(
    settings: Settings, pool: Pool, ending: str
) -> None:
    clock = Clock()
    await waiting_endpoint(settings, pool, clock, 3)
    await fail(pool, 5, clock)
    dsn = settings.postgres_dsn.get_secret_value()
    dying, other = RelayNumber(dsn, lambda: None), RelayNumber(dsn, lambda: None)
    try:
        first_no, other_no = await dying.hold(), await other.hold()
        (probe,) = await lease(pool, clock, first_no)
        assert probe.probe
        assert await lease(pool, clock, other_no) == [], "one at a time"
        match ending:
            case "its relay died":
                await dying.close()
                assert await other.free_leases(clock()) == 1
            case "it was given back":
                await give_back(pool, [probe])
            case _:
                await put_off(pool, [probe], clock())
        (next_probe,) = await lease(pool, clock, other_no)
        assert next_probe.probe
    finally:
        await dying.close()
        await other.close()


async def test_a_test_that_is_asked_for_is_the_next_probe(settings: Settings, pool: Pool) -> None:
    clock = Clock()
    subscription_no = await waiting_endpoint(settings, pool, clock, 3)
    await fail(pool, 5, clock)
    assert await request_test(pool, 1, subscription_no)
    while (await Sequencer(pool).run_once(clock())).events:
        pass
    (probe,) = await lease(pool, clock)
    asked = await pool.fetchval("SELECT event_no FROM events WHERE type = 'webhook.test'")
    assert (probe.probe, probe.event_no) == (True, asked)


async def test_of_two_relays_that_see_no_probe_one_probes(settings: Settings, pool: Pool) -> None:
    """The second began to look before the first committed, and comes to the endpoint after that."""
    clock = Clock()
    await waiting_endpoint(settings, pool, clock, 3)
    await fail(pool, 5, clock)
    pausing = leasing._queries["lease_due"].replace("'off'", "pg_sleep(1)::text || 'off'")  # noqa: SLF001
    assert "pg_sleep" in pausing
    until_at = clock() + timedelta(seconds=limits.LEASE_S)
    late = asyncio.create_task(pool.fetch(pausing, 8, clock(), until_at, 8, [], [], 8, 5, 8))

    async def sleeps() -> bool:
        return bool(await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))

    await until(sleeps, "the second looks")
    (probe,) = await lease(pool, clock)
    assert probe.probe
    assert await sleeps(), "it still did"
    assert await late == []
    assert await pool.fetchval("SELECT count(*) FROM deliveries WHERE leased_by IS NOT NULL") == 1


async def test_leasing_does_not_wait_for_an_endpoint_that_is_being_noted(
    settings: Settings, pool: Pool
) -> None:
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 3)
    await fail(pool, 5, clock)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM subscriptions WHERE subscription_no = $1 FOR UPDATE", number)
        assert await asyncio.wait_for(lease(pool, clock), 2) == []


async def test_a_note_that_breaks_off_notes_nothing_and_repeated_counts_once(
    settings: Settings, pool: Pool
) -> None:
    """The relay is cut off between the queue and its endpoint; then an answer is lost."""
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 1)
    await fail(pool, 4, clock)
    (leased,) = await lease(pool, clock)
    outcome = judge(leased, clock(), REFUSED, clock(), 0.0)
    settler = Settler(pool)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM subscriptions FOR UPDATE")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(settler.settle([outcome], clock()), 0.5)
    (row,) = await queue(pool, number)
    assert (row["leased_by"], row["attempt_count"]) == (7, 0)
    assert await attempts(pool, number) == []
    await settler.settle([outcome], clock())
    unheard = Settler(pool)
    unheard._repeated = True  # noqa: SLF001 - as after an answer that was lost
    await unheard.settle([outcome], clock())
    assert len(await attempts(pool, number)) == 1
    assert (await subscription(pool, number))["failure_count"] == 5


async def test_attempts_under_way_at_the_same_time_are_one_failure_whoever_makes_them(
    settings: Settings, pool: Pool
) -> None:
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 6)
    at_once = [*await lease(pool, clock, 7, room=2), *await lease(pool, clock, 8, room=2)]
    began_at = clock()
    for place, leased in enumerate(at_once):
        clock.move(seconds=1)
        outcome = judge(leased, began_at, REFUSED, clock(), 0.0)
        await Settler(pool).settle([outcome], clock())
        row = await subscription(pool, number)
        assert row["failure_count"] == 1, place
    for count in (2, 3):
        (leased,) = await lease(pool, clock, 7, room=1)
        outcome = judge(leased, clock(), REFUSED, clock(), 0.0)
        clock.move(seconds=1)
        await Settler(pool).settle([outcome], clock())
        assert (await subscription(pool, number))["failure_count"] == count


async def test_a_success_begun_before_an_endpoint_failed_does_not_say_that_it_is_back(
    settings: Settings, pool: Pool
) -> None:
    """A receiver that is being stopped ends what it has begun, and refuses what comes new."""
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 3)
    await fail(pool, 4, clock)
    slow, quick = await lease(pool, clock, room=2)
    began_at = clock()
    clock.move(seconds=1)
    await Settler(pool).settle([judge(quick, began_at, REFUSED, clock(), 0.0)], clock())
    await Settler(pool).settle([judge(slow, began_at, ACCEPTED, clock(), 0.0)], clock())
    row = await subscription(pool, number)
    assert row["failure_count"] == 5
    assert row["held_until"] == clock() + timedelta(seconds=retries.HOLD_FIRST_S)


async def test_a_restart_of_a_busy_receiver_is_one_failure(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=100)
    most = limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT
    async with Receiver(delay_s=0.02).listening() as receiver, opened(settings) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 30)
        await relay.run_once()
        receiver.status = 503
        receiver.delay_of = lambda request: 0.3 + 0.03 * (seq_of(request) % most)
        async with at_work(relay):
            await tell(pool, drop, most)

            async def refused() -> bool:
                return len(await attempts(pool, subscribed.subscription_no)) == 30 + most

            await until(refused, "all were refused")
            assert receiver.at_once_max == most
            assert (await subscription(pool, subscribed.subscription_no))["failure_count"] == 1


async def test_a_receiver_that_was_away_for_a_moment_is_found_again_soon(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=10_000)
    receiver = Receiver(delay_s=0.01)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    async with opened(settings) as relay, contextlib.AsyncExitStack() as work:
        await subscribe(pool, f"http://127.0.0.1:{port}/", types=ISSUED)
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                await tell(pool, drop, 4)
                await asyncio.sleep(0.05)

        await work.enter_async_context(at_work(relay))
        loading = asyncio.create_task(load())
        async with receiver.listening(port):
            await asyncio.sleep(1)
        await asyncio.sleep(0.3)
        before = len(receiver.requests)
        async with receiver.listening(port):
            back_at = monotonic()

            async def found() -> bool:
                return len(receiver.requests) > before

            await until(found, "it is asked again")
            took_s = monotonic() - back_at
            stop.set()
            await loading
        assert before > 0
        assert took_s < limits.WEBHOOK_RETRY_DELAYS_S[0] - 1.5, "a second's hold, and a look a second"


async def test_with_a_success_what_failed_twice_is_due_at_once(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    clock = Clock()
    async with Receiver(status=503).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 1, clock())
        assert (await relay.run_once()).failed == 1
        clock.move(seconds=limits.WEBHOOK_RETRY_DELAYS_S[0])
        assert (await relay.run_once()).failed == 1
        receiver.status = 200
        clock.move(seconds=1)
        await tell(pool, drop, 1, clock())
        assert (await relay.run_once()).delivered == 2
        assert await queue(pool, subscribed.subscription_no) == []


async def test_an_event_that_is_refused_alone_goes_down_its_ladder_beside_a_thousand_others(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=1_001)
    clock = Clock()
    refusing = Receiver(status_of=lambda request: 500 if seq_of(request) == 1 else 200)
    async with refusing.listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 1, clock())
        tried = []
        for delay_s in (0, *limits.WEBHOOK_RETRY_DELAYS_S):
            clock.move(seconds=delay_s)
            for _ in range(2):  # and when it is not due
                await relay.run_once()
                await tell(pool, drop, 50, clock())
                assert (await relay.run_once()).delivered == 50
            tried.append(len([1 for request in receiver.requests if seq_of(request) == 1]))
        assert tried == list(range(1, retries.DELIVERY_ATTEMPTS_MAX_COUNT + 1))
        (poisoned,) = await queue(pool, subscribed.subscription_no)
        assert poisoned["parked_because"].startswith("gave up after 10 attempts")


async def test_events_that_are_refused_one_after_the_other_are_not_tried_at_every_success(
    settings: Settings, pool: Pool
) -> None:
    """Two refusals in a row look like an endpoint in trouble; that costs two attempts and no more."""
    drop = await make_drop(pool, quantity=100)
    clock = Clock()
    refusing = Receiver(status_of=lambda request: 500 if seq_of(request) <= 2 else 200)
    async with refusing.listening() as receiver, opened(settings, clock) as relay:
        await subscribe(pool, receiver.url, types=ISSUED)
        for _ in range(2):
            await tell(pool, drop, 1, clock())
            await relay.run_once()
        for _ in range(20):
            clock.move(milliseconds=1)
            await tell(pool, drop, 1, clock())
            await relay.run_once()
        tried = [sum(seq_of(request) == seq for request in receiver.requests) for seq in (1, 2)]
        assert max(tried) <= 1 + retries.YOUNG_ATTEMPTS_MAX_COUNT, tried


async def test_however_much_waits_all_of_it_is_due_with_the_first_success(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (settling, tending):
        monkeypatch.setattr(module, "RELEASED_MAX_COUNT", 3)
    drop = await make_drop(pool, quantity=20)
    clock = Clock()
    async with Receiver().listening() as receiver, opened(settings, clock) as relay:
        await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 20, clock())
        await pool.execute(
            "UPDATE deliveries SET attempt_count = 4, due_at = due_at + interval '5 hours' WHERE event_no > 1"
        )
        await fail(pool, 5, clock)
        assert (await relay.run_once()).delivered == 20


async def test_410_disables_at_once_and_what_is_queued_is_parked_beside_the_flow(
    settings: Settings, pool: Pool
) -> None:
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 20)
    leased, *_ = await lease(pool, clock, room=1)
    remainder = Remainder()
    await Settler(pool, remainder).settle([judge(leased, clock(), GONE, clock(), 0.0)], clock())
    assert (await subscription(pool, number))["disabled_at"] == clock()
    parked = [row["parked_at"] is not None for row in await queue(pool, number)]
    assert parked == [True, *[False] * 19], "settling parks what it was told of; everybody waits for it"
    assert remainder.wake.is_set()
    assert await lease(pool, clock) == []


async def test_a_relay_at_work_parks_what_waits_for_a_disabled_endpoint_at_once(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "CHUNK_COUNT", 10)
    drop = await make_drop(pool, quantity=100)
    async with Receiver(status=410).listening() as receiver, opened(settings) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        async with at_work(relay):
            await asyncio.sleep(0.5)  # its first turn of tending, which comes without being asked, is over
            await tell(pool, drop, 50)

            async def all_parked() -> bool:
                rows = await queue(pool, subscribed.subscription_no)
                return {row["parked_because"] for row in rows} == {retries.GONE}

            await until(all_parked, "all of it is parked")


async def test_a_relay_opens_whatever_is_left_of_deleted_subscriptions_and_removes_it_then(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "CHUNK_COUNT", 10)
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 25)
    await pool.execute("UPDATE subscriptions SET deleted_at = now()")
    async with opened(settings, clock) as relay:
        assert len(await queue(pool, number)) == 25, "opening takes as long as ever"
        await relay.run_once()
        assert await queue(pool, number) == []


async def test_a_step_of_tending_that_fails_does_not_keep_the_others_from_being_taken(
    settings: Settings, pool: Pool
) -> None:
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 25)
    async with opened(settings, clock) as relay, pool.acquire() as connection:
        await pool.execute("UPDATE subscriptions SET deleted_at = now()")
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
        async with at_work(relay):

            async def forgotten() -> bool:
                return await queue(pool, number) == []

            await until(forgotten, "what was deleted is forgotten while partitions cannot be made")
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)


REFUSE_DELETES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
CREATE TRIGGER refuse BEFORE DELETE ON deliveries FOR EACH ROW EXECUTE FUNCTION refuse();
DROP TABLE events_1;
"""


async def test_partitions_are_made_also_while_the_queue_cannot_be_cleared(
    settings: Settings, pool: Pool
) -> None:
    clock = Clock()
    number = await waiting_endpoint(settings, pool, clock, 5)
    async with opened(settings, clock) as relay:
        await pool.execute("UPDATE subscriptions SET deleted_at = now()")
        await pool.execute(REFUSE_DELETES)
        async with at_work(relay):

            async def made() -> bool:
                return await pool.fetchval("SELECT to_regclass('events_1')") is not None

            await until(made, "the next partition is there")
        assert len(await queue(pool, number)) == 5


async def test_an_event_that_cannot_be_rendered_holds_up_no_other(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    clock = Clock()
    async with Receiver().listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await pool.execute(
            "INSERT INTO outbox (type, subscription_no) VALUES ('webhook.test', $1)",
            subscribed.subscription_no,
        )
        await Sequencer(pool).run_once(clock())
        await pool.execute("UPDATE events SET data = '{}' WHERE type = 'webhook.test'")
        await issue(pool, drop, 1)
        counts = await relay.run_once()
        assert (counts.delivered, counts.failed) == (1, 0)
        assert len(receiver.requests) == 1
        (left,) = await queue(pool, subscribed.subscription_no)
        assert (left["attempt_count"], left["leased_by"]) == (0, None)
        assert left["due_at"] == clock() + settling.PUT_OFF
