"""Several relays on one queue, and leases: who may note what, and when a lease is free."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from couponsvc import limits
from couponsvc.outbox import leasing
from couponsvc.outbox.leasing import Pool, RelayNumber, lease_due
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.outbox.settling import Settler, judge
from couponsvc.settings import Settings
from couponsvc.support.guarded_http import PostResult
from couponsvc.support.postgres import open_pool
from couponsvc.values.event import EventType
from tests.integration.scene import issue, make_drop
from tests.receivers import Received, Receiver, attempts, queue, subscribe
from tests.relays import Clock, opened, tell

pytestmark = pytest.mark.slow

ISSUED = [EventType.VOUCHER_ISSUED.public]
EVENTS_COUNT = 500


async def test_three_relays_share_the_work_and_none_sends_what_another_sent(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=EVENTS_COUNT)
    async with (
        Receiver(delay_s=0.005).listening() as receiver,
        opened(settings) as first,
        opened(settings) as second,
        opened(settings) as third,
    ):
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, EVENTS_COUNT)
        counts = await asyncio.gather(*(relay.run_once() for relay in (first, second, third)))
        assert min(count.delivered for count in counts) > 0, counts
        assert sum(count.delivered for count in counts) == EVENTS_COUNT
        assert Counter(receiver.ids).most_common(1)[0][1] == 1
        assert len(receiver.ids) == EVENTS_COUNT
        assert receiver.at_once_max <= 3 * limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT
        assert await queue(pool, subscribed.subscription_no) == []
        assert len(await attempts(pool, subscribed.subscription_no)) == EVENTS_COUNT


async def test_two_relays_never_probe_an_endpoint_at_once(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=40)
    clock = Clock()
    async with (
        Receiver(status=503, delay_s=0.05).listening() as receiver,
        opened(settings, clock) as first,
        opened(settings, clock) as second,
    ):
        await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 40, clock())
        await first.run_once()
        for _ in range(4):
            receiver.at_once_max = 0
            clock.move(seconds=300)
            counts = await asyncio.gather(first.run_once(), second.run_once())
            assert sum(count.failed for count in counts) == 1
            assert receiver.at_once_max == 1


async def test_a_late_note_neither_ends_another_relays_lease_nor_loses_the_attempt(
    settings: Settings, pool: Pool
) -> None:
    """The first relay is so slow that its lease ends; the second has taken over when it says "failed"."""
    drop = await make_drop(pool, quantity=10)
    slow_clock, clock = Clock(), Clock()
    seen: list[Received] = []
    asked_twice = asyncio.Event()

    def note(request: Received) -> None:
        seen.append(request)
        if len(seen) == 2:
            asked_twice.set()

    async with (
        Receiver(
            on_request=note,
            status_of=lambda request: 500 if request is seen[0] else 200,
            delay_of=lambda request: 0.2 if request is seen[0] else 0.6,
        ).listening() as receiver,
        opened(settings, slow_clock) as slow,
        opened(settings, clock) as quick,
    ):
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 1)
        late = asyncio.create_task(slow.run_once())
        while not seen:
            await asyncio.sleep(0.005)
        clock.move(seconds=limits.LEASE_S)
        taking_over = asyncio.create_task(quick.run_once())
        await asked_twice.wait()
        (leased,) = await queue(pool, subscribed.subscription_no)
        assert (await late).failed == 1
        assert await queue(pool, subscribed.subscription_no) == [leased], "the other's lease stands"
        counts = await taking_over
        assert (counts.freed, counts.delivered) == (1, 1)
        assert await queue(pool, subscribed.subscription_no) == []
        first, second = receiver.requests
        assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
        outcomes = [row["outcome"] for row in await attempts(pool, subscribed.subscription_no)]
        assert sorted(outcomes) == ["delivered", "failed"]


@pytest.mark.parametrize("asked_again", [False, True])
async def test_a_late_success_counts_where_nobody_has_taken_over_and_nobody_has_asked_again(
    settings: Settings, pool: Pool, *, asked_again: bool
) -> None:
    drop = await make_drop(pool, quantity=10)
    clock = Clock()
    async with Receiver(delay_s=0.3).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 1)
        running = asyncio.create_task(relay.run_once())
        while not receiver.requests:
            await asyncio.sleep(0.005)
        await pool.execute(
            "UPDATE deliveries SET leased_by = NULL, leased_until = NULL, due_at = $1",
            clock.moment + timedelta(hours=1),
        )
        if asked_again:
            await pool.execute("UPDATE deliveries SET queued_at = queued_at + interval '1 second'")
        assert (await running).delivered == 1
        assert len(await queue(pool, subscribed.subscription_no)) == asked_again


async def lease_all(pool: Pool, relay_no: int, until: datetime) -> None:
    await pool.execute("UPDATE deliveries SET leased_by = $1, leased_until = $2", relay_no, until)


async def test_leases_of_a_dead_relay_are_free_at_once_and_of_a_living_one_when_they_end(
    settings: Settings, pool: Pool
) -> None:
    clock = Clock()
    dsn = settings.postgres_dsn.get_secret_value()
    await pool.execute(
        "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at) VALUES (1, 1, now(), now())"
    )
    living, other = RelayNumber(dsn, lambda: None), RelayNumber(dsn, lambda: None)
    try:
        number = await living.hold()
        assert await other.hold() != number
        until = clock.moment.replace(microsecond=0)
        await lease_all(pool, number, until)
        clock.moment = until
        clock.move(seconds=-1)
        assert await other.free_leases(clock.moment) == 0
        clock.move(seconds=1)
        assert await other.free_leases(clock.moment) == 1

        clock.move(seconds=-1)
        await lease_all(pool, number, until)
        await living.close()
        assert await other.free_leases(clock.moment) == 1
    finally:
        await living.close()
        await other.close()


async def test_a_number_that_was_lost_is_taken_again_and_others_are_given_time_to_do_so(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "RECONNECT_GRACE_S", 0.7)
    dsn = settings.postgres_dsn.get_secret_value()
    await pool.execute(
        "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at) VALUES (1, 1, now(), now())"
    )
    number = RelayNumber(dsn, lambda: None)
    try:
        before = await number.hold()
        await lease_all(pool, before + 1_000, datetime.now(UTC).replace(year=2100))
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            leasing.RELAY_LOCKS,
        )
        async with asyncio.timeout(5):
            while number.number is not None:
                await asyncio.sleep(0.01)
        assert await number.hold() == before
        assert await number.free_leases(datetime.now(UTC)) == 0, "whose session was ended, too"
        async with asyncio.timeout(2 * leasing.RECONNECT_GRACE_S):
            while not await number.free_leases(datetime.now(UTC)):
                await asyncio.sleep(0.05)
    finally:
        await number.close()


async def test_outcomes_noted_twice_are_recorded_once(settings: Settings, pool: Pool) -> None:
    """The answer to a commit is lost, so the relay notes the same outcomes again."""
    drop = await make_drop(pool, quantity=10)
    clock = Clock()
    async with opened(settings, clock):  # makes the partitions
        subscribed = await subscribe(pool, "http://127.0.0.1:1/", types=ISSUED)
    await issue(pool, drop, 1)
    await Sequencer(pool).run_once(clock())
    (lease,) = await lease_due(pool, 7, clock(), room=1, rooms={}, room_elsewhere=1, probe_room=1)
    outcome = judge(lease, clock(), PostResult(500, "no", 3), clock(), 0.0)
    await Settler(pool).settle([outcome], clock())
    unheard = Settler(await open_pool(settings.postgres_dsn.get_secret_value()))
    unheard.pool.terminate()
    with pytest.raises(asyncpg.InterfaceError):
        await unheard.settle([outcome], clock())
    unheard.pool = pool
    await unheard.settle([outcome], clock())
    (attempt,) = await attempts(pool, subscribed.subscription_no)
    assert (attempt["attempt_no"], attempt["error"]) == (1, "no")
    (row,) = await queue(pool, subscribed.subscription_no)
    assert (row["attempt_count"], row["due_at"]) == (1, clock() + timedelta(seconds=5))


async def test_news_of_events_wake_every_relay(settings: Settings, pool: Pool) -> None:
    woken = asyncio.Event()
    number = RelayNumber(settings.postgres_dsn.get_secret_value(), woken.set)
    try:
        await number.hold()
        await pool.execute(f"NOTIFY {leasing.EVENTS_CHANNEL}, '1,2'")
        async with asyncio.timeout(5):
            await woken.wait()
    finally:
        await number.close()


async def test_leasing_reads_the_queue_by_its_index_however_long_it_is(pool: Pool) -> None:
    """An endpoint with a long queue, one that fails, and parked rows cost nobody else anything."""
    await make_drop(pool)
    for _ in range(3):
        await subscribe(pool, "http://127.0.0.1:1/")
    await pool.execute(
        "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at, parked_at, parked_because)"
        " SELECT 1 + n % 3, n, now(), now() + (n % 7) * interval '1 second',"
        " CASE WHEN n % 2 = 0 THEN now() END, CASE WHEN n % 2 = 0 THEN 'x' END"
        " FROM generate_series(1, 30000) n"
    )
    await pool.execute("UPDATE subscriptions SET failure_count = 9 WHERE subscription_no = 2")
    await pool.execute("VACUUM ANALYZE deliveries, subscriptions")
    statement = leasing._queries["lease_due"]  # noqa: SLF001 - the very statement
    now = datetime.now(UTC)
    arguments = (7, now, now, 256, [1], [8], 2, 5, 64)
    async with pool.acquire() as connection:
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}")
            transaction = connection.transaction()
            await transaction.start()
            prepared = await connection.prepare(statement)
            explained = await prepared.explain(*arguments, analyze=True)
            await transaction.rollback()
            seen = scans(explained[0]["Plan"])
            assert "Seq Scan" not in {how for how, _ in seen}, seen
            assert sum(rows for _, rows in seen) < 100, seen


def scans(node: "dict[str, object]") -> list[tuple[object, int]]:
    """How a plan reads deliveries, and how many rows it saw there."""
    own: list[tuple[object, int]] = []
    if node.get("Relation Name") == "deliveries" and "Scan" in str(node["Node Type"]):
        rows = int(str(node["Actual Rows"]).partition(".")[0]) + int(
            str(node.get("Rows Removed by Filter", 0))
        )
        own = [(node["Node Type"], rows * int(str(node["Actual Loops"])))]
    plans = node.get("Plans", ())
    assert isinstance(plans, (list, tuple))
    return own + [scan for child in plans for scan in scans(child)]
