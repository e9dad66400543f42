"""The relay on a real ledger: what is sent, to whom, how often, and what becomes of it."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

import couponsvc
from couponsvc import limits
from couponsvc.outbox import redelivery, retries, settling
from couponsvc.outbox.endpoints import ROOM_FIRST
from couponsvc.outbox.leasing import Pool
from couponsvc.outbox.relay import RelayCounts
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.settings import Settings
from couponsvc.support import metrics
from couponsvc.support.webhook_signature import new_secret
from couponsvc.values.event import EventType
from tests import receivers
from tests.integration.scene import issue, make_drop
from tests.receivers import Received, Receiver, attempts, queue, subscribe, subscription
from tests.relays import Clock, at_work, opened, tell

ISSUED = [EventType.VOUCHER_ISSUED.public]
TRIED_AT_FIRST_COUNT = retries.FAILING_FROM_COUNT + ROOM_FIRST - 1
"""Of an endpoint that refuses everything, before it is held back: those at once count as one failure."""
WAITS_FOR_A_LOCK = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def test_an_event_arrives_signed_and_leaves_the_queue(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    async with Receiver().listening() as receiver, opened(settings) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 3)
        counts = await relay.run_once()
        assert (counts.queued, counts.delivered, counts.failed) == (1, 1, 0)
        (request,) = receiver.requests
        assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        assert request.headers["user-agent"] == f"couponsvc/{couponsvc.__version__}"
        assert Webhook(subscribed.secret).verify(request.body, request.headers) == request.event
        assert request.event["id"] == request.webhook_id
        assert [voucher["seq"] for voucher in request.event["data"]["vouchers"]] == [1, 2, 3]
        assert await queue(pool, subscribed.subscription_no) == []
        (attempt,) = await attempts(pool, subscribed.subscription_no)
        assert (attempt["attempt_no"], attempt["status"], attempt["outcome"]) == (1, 200, "delivered")
        assert await relay.run_once() == RelayCounts()


async def test_after_a_rotation_both_secrets_sign_until_the_old_one_ends(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=10)
    clock = Clock()
    async with Receiver().listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        new = new_secret()
        await pool.execute(
            "UPDATE subscriptions SET previous_sealed_secret = sealed_secret, previous_until = $2,"
            " sealed_secret = $3 WHERE subscription_no = $1",
            subscribed.subscription_no,
            clock.moment + timedelta(seconds=30),
            receivers.seal(subscribed.subscription_no, new),
        )
        for seconds in (0, 60):
            clock.move(seconds=seconds)
            await issue(pool, drop, 1)
            await relay.run_once()
        during, after = receiver.requests
        for secret in (new, subscribed.secret):
            Webhook(secret).verify(during.body, during.headers)
        Webhook(new).verify(after.body, after.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(subscribed.secret).verify(after.body, after.headers)


async def test_the_whole_ladder_then_parked_then_asked_for_again(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    clock = Clock(datetime.now(UTC).replace(microsecond=0))
    began = clock.moment
    async with Receiver(status=500).listening() as receiver, opened(settings, clock, lambda: 0.5) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 1)
        for delay_s in (*limits.WEBHOOK_RETRY_DELAYS_S, None):
            assert (await relay.run_once()).failed == 1
            if delay_s is None:
                break
            clock.move(seconds=delay_s * 1.05 - 1)
            assert await relay.run_once() == RelayCounts()
            clock.move(seconds=1)
        tried = await attempts(pool, subscribed.subscription_no)
        assert [row["attempt_no"] for row in tried] == list(range(1, 11))
        after_s = [0.0]
        for delay_s in limits.WEBHOOK_RETRY_DELAYS_S:
            after_s.append(after_s[-1] + delay_s * 1.05)
        assert [(row["attempted_at"] - began).total_seconds() for row in tried] == pytest.approx(after_s)
        assert {(row["status"], row["outcome"]) for row in tried} == {(500, "failed")}
        (parked,) = await queue(pool, subscribed.subscription_no)
        assert parked["parked_at"] == clock.moment
        assert parked["parked_because"] == "gave up after 10 attempts in 79.4 hours"
        assert len({request.body for request in receiver.requests}) == 1
        assert len(set(receiver.ids)) == 1
        clock.move(days=1)
        assert await relay.run_once() == RelayCounts()

        receiver.status = 204
        await pool.execute(
            "UPDATE deliveries SET parked_at = NULL, parked_because = NULL, attempt_count = 0,"
            " queued_at = $1, due_at = $1",
            clock.moment,
        )
        assert (await relay.run_once()).delivered == 1
        assert await queue(pool, subscribed.subscription_no) == []
        assert (await subscription(pool, subscribed.subscription_no))["failure_count"] == 0


async def test_410_disables_the_subscription_and_parks_its_queue(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=100)
    clock = Clock()
    async with Receiver(status=410).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 20, clock())
        counts = await relay.run_once()
        assert len(receiver.requests) == counts.failed <= 2, "only what was under way already"
        row = await subscription(pool, subscribed.subscription_no)
        assert row["disabled_at"] == clock.moment
        parked = await queue(pool, subscribed.subscription_no)
        assert len(parked) == 20
        assert {row["parked_because"] for row in parked} == {"the receiver answered 410"}
        await issue(pool, drop, 1)
        assert (await relay.run_once()).queued == 0
        assert len(receiver.requests) == counts.failed


async def test_what_is_queued_while_410_disables_the_subscription_is_parked_by_the_next_sweep(
    settings: Settings, pool: Pool
) -> None:
    """Its sequencer saw a live subscription and commits after the queue was parked."""
    drop = await make_drop(pool, quantity=10)
    clock = Clock()
    async with Receiver(status=410).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 1)
        await Sequencer(pool).run_once(clock())
        await issue(pool, drop, 1)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE drop_tellings IN EXCLUSIVE MODE")
            turn = asyncio.create_task(Sequencer(pool).run_once(clock()))
            async with asyncio.timeout(5):
                while not await pool.fetchval(WAITS_FOR_A_LOCK):
                    await asyncio.sleep(0.01)
            assert (await relay.run_once()).failed == 1
        assert (await turn).deliveries == 1
        assert (await subscription(pool, subscribed.subscription_no))["disabled_at"] == clock.moment
        rows = await queue(pool, subscribed.subscription_no)
        assert [row["parked_because"] for row in rows] == ["the receiver answered 410", None]
        assert (await relay.run_once()).parked == 1
        rows = await queue(pool, subscribed.subscription_no)
        assert [row["parked_because"] for row in rows] == ["the receiver answered 410"] * 2
        assert len(receiver.requests) == 1


async def test_a_failing_endpoint_is_probed_one_by_one_and_ever_more_rarely(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=100)
    clock = Clock()
    async with Receiver(status=503).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 50, clock())
        await relay.run_once()
        assert len(receiver.requests) == TRIED_AT_FIRST_COUNT, "then it is held back"
        for hold_s in retries.HOLDS_S:
            before = len(receiver.requests)
            clock.move(seconds=hold_s - 1)
            assert (await relay.run_once()).failed == 0
            clock.move(seconds=1)
            assert (await relay.run_once()).failed == 1
            assert len(receiver.requests) == before + 1
        assert receiver.at_once_max <= 2

        receiver.status = 200
        before = len(receiver.requests)
        clock.move(seconds=retries.HOLD_MAX_S)
        counts = await relay.run_once()
        assert counts.delivered == 50, "everything that waits is due with the first success"
        accepted = [request.event["data"]["vouchers"][0]["seq"] for request in receiver.requests[before:]]
        assert sorted(accepted) == list(range(1, 51))
        row = await subscription(pool, subscribed.subscription_no)
        assert (row["failure_count"], row["held_until"]) == (0, None)
        assert receiver.at_once_max <= limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT


async def test_what_was_never_tried_is_parked_when_its_ladder_would_have_ended(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=100)
    clock = Clock()
    async with Receiver(status=503).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 20, clock())
        await relay.run_once()
        untried = [r for r in await queue(pool, subscribed.subscription_no) if r["attempt_count"] == 0]
        assert len(untried) == 20 - TRIED_AT_FIRST_COUNT
        clock.moment += retries.LADDER
        await relay.run_once()
        clock.move(seconds=1)
        assert (await relay.run_once()).parked == 19
        rows = await queue(pool, subscribed.subscription_no)
        waiting = [row for row in rows if row["parked_because"] != retries.TOO_OLD]
        assert len(waiting) == 1, "the last probe's, which has an attempt to come"
        assert waiting[0]["attempt_count"] > 0


async def test_an_endpoint_never_has_more_at_once_than_it_may(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=200)
    async with Receiver(delay_s=0.01).listening() as receiver, opened(settings) as relay:
        await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 100)
        assert (await relay.run_once()).delivered == 100
        assert receiver.at_once_max == limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT


async def test_what_is_leased_of_an_endpoint_is_the_oldest(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=200)
    async with Receiver().listening() as receiver, opened(settings) as relay:
        await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 60)
        await relay.run_once()
        numbers = [int(name.removeprefix("evt_")) for name in receiver.ids]
        most = limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT
        assert all(abs(number - place) < most for place, number in enumerate(numbers, start=numbers[0]))


async def test_an_event_of_another_partner_is_never_sent(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    await pool.execute("INSERT INTO partners (partner_id, name) VALUES ('bank-b', 'B')")
    clock = Clock()
    async with Receiver().listening() as receiver, opened(settings, clock) as relay:
        stranger = await subscribe(pool, receiver.url, partner_id="bank-b")
        own = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 1)
        await pool.execute(
            "UPDATE subscriptions SET disabled_at = now() WHERE subscription_no = $1", own.subscription_no
        )
        await relay.run_once()
        event_no = await pool.fetchval("SELECT max(event_no) FROM events WHERE type = 'voucher.issued'")
        await pool.execute(
            "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at) VALUES ($1, $2, $3, $3)",
            stranger.subscription_no,
            event_no,
            clock.moment,
        )
        await relay.run_once()
        assert receiver.requests == []
        (row,) = await queue(pool, stranger.subscription_no)
        assert (row["attempt_count"], row["leased_by"]) == (0, None)
        assert row["due_at"] > clock.moment, "and not asked for again at once"


async def test_an_outcome_is_noted_while_somebody_asks_for_that_event_and_many_others(
    settings: Settings, pool: Pool
) -> None:
    """The asking stands still at its end, with everything queued; nobody waits for it."""
    drop = await make_drop(pool, quantity=100)
    async with Receiver(delay_s=0.5).listening() as receiver, opened(settings) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 5)
        await pool.execute("UPDATE subscriptions SET held_until = now() - interval '1 hour'")
        delivering = asyncio.create_task(relay.run_once())
        async with asyncio.timeout(5):
            while not receiver.requests:
                await asyncio.sleep(0.005)
        async with pool.acquire() as other, other.transaction():
            await other.execute("SELECT FROM subscriptions FOR UPDATE")
            since, until = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
            asking = asyncio.create_task(
                redelivery.redeliver(pool, 1, subscribed.subscription_no, since=since, until=until)
            )
            async with asyncio.timeout(5):
                while not await pool.fetchval(WAITS_FOR_A_LOCK):
                    await asyncio.sleep(0.01)
            counts = await asyncio.wait_for(delivering, 2)
        assert counts.delivered == 5
        assert await asking == 3, "two were on their way"


async def test_an_event_that_several_want_reaches_each(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    async with (
        Receiver().listening() as first,
        Receiver().listening() as second,
        opened(settings) as relay,
    ):
        one = await subscribe(pool, first.url, types=ISSUED)
        two = await subscribe(pool, second.url, types=ISSUED)
        await issue(pool, drop, 2)
        assert (await relay.run_once()).delivered == 2
        assert first.requests[0].body == second.requests[0].body
        Webhook(one.secret).verify(first.requests[0].body, first.requests[0].headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(two.secret).verify(first.requests[0].body, first.requests[0].headers)


async def test_running_it_delivers_soon_and_stops_within_its_bound(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    arrived = asyncio.Event()

    def note(_: Received) -> None:
        arrived.set()

    async with Receiver(on_request=note).listening() as receiver, opened(settings) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        async with at_work(relay) as end:
            await issue(pool, drop, 1)
            async with asyncio.timeout(5):
                await arrived.wait()
                while await queue(pool, subscribed.subscription_no):
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(2):
                await end()


async def test_metrics_name_the_subscription_and_never_where_it_leads(settings: Settings, pool: Pool) -> None:
    drop = await make_drop(pool, quantity=10)
    async with Receiver(status=500).listening() as receiver, opened(settings) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await issue(pool, drop, 1)
        await relay.run_once()
        await settling.observe(pool, datetime.now(UTC) + timedelta(seconds=30))
        shown = metrics.render().decode()
        sample = f'{{outcome="failed",subscription_id="{subscribed.subscription_id}"}}'
        assert f"couponsvc_delivery_attempts_total{sample}" in shown
        assert "couponsvc_deliveries_queued 1.0" in shown
        (oldest,) = [li for li in shown.splitlines() if li.startswith("couponsvc_deliveries_oldest_seconds ")]
        assert 29 < float(oldest.split()[1]) < 60
        assert str(receiver.port) not in shown
        assert subscribed.secret not in shown


def test_a_broker_whose_client_is_missing_ends_the_process_with_the_name_of_the_extra(
    settings: Settings,
) -> None:
    without_client = (
        "import sys; sys.modules['nats'] = None; sys.argv = ['couponsvc', 'relay'];"
        "from couponsvc.__main__ import main; main()"
    )
    ended = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", without_client],
        env={
            **os.environ,
            "COUPONSVC_REDIS_URL": settings.redis_url,
            "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
            "COUPONSVC_MASTER_KEY": settings.master_key.get_secret_value(),
            "COUPONSVC_NATS_URL": "nats://127.0.0.1:1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "nats" in ended.stderr
