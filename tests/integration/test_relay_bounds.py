"""What bounds a relay: the time an answer may take, and Postgres that does not take its notes."""

import asyncio
from collections import Counter

import pytest

from couponsvc import limits
from couponsvc.outbox.leasing import Pool
from couponsvc.settings import Settings
from couponsvc.values.event import EventType
from tests.integration.scene import make_drop
from tests.receivers import Receiver, attempts, queue, subscribe
from tests.relays import at_work, opened, tell

pytestmark = pytest.mark.slow

ISSUED = [EventType.VOUCHER_ISSUED.public]
SUBSCRIPTIONS_COUNT = 16
EVENTS_COUNT = 5
IN_FLIGHT_COUNT = 12
"""Fewer than the endpoints have room for, 2 at each."""
STAYS_SO_S = 1.5
"""Several turns of leasing, of which any could have started more."""
PATIENCE_S = 30.0
TIMEOUT_S = 2.0
BEFORE_S = 0.5
AFTER_S = 6.0


async def test_where_postgres_takes_no_notes_no_more_is_posted_than_may_be_under_way(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DELIVERIES_IN_FLIGHT_MAX_COUNT", IN_FLIGHT_COUNT)
    drop = await make_drop(pool, quantity=EVENTS_COUNT)
    whole_count = SUBSCRIPTIONS_COUNT * EVENTS_COUNT
    async with Receiver().listening() as receiver, opened(settings) as relay:
        for n in range(SUBSCRIPTIONS_COUNT):
            await subscribe(pool, f"{receiver.url}/{n}", types=ISSUED)
        async with pool.acquire() as connection, at_work(relay):
            async with connection.transaction():
                await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                await connection.execute("LOCK TABLE delivery_attempts IN SHARE MODE")  # reading is free
                await tell(pool, drop, EVENTS_COUNT)
                async with asyncio.timeout(PATIENCE_S):
                    while len(receiver.ids) < IN_FLIGHT_COUNT:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(STAYS_SO_S)
                assert receiver.at_once == 0, "all of them were answered at once"
                assert len(receiver.ids) == IN_FLIGHT_COUNT
            async with asyncio.timeout(PATIENCE_S):
                while await pool.fetchval("SELECT count(*) FROM deliveries"):
                    await asyncio.sleep(0.01)
        assert len(receiver.ids) == whole_count, "and none of them twice"
        assert set(Counter(receiver.ids).values()) == {SUBSCRIPTIONS_COUNT}


async def test_an_answer_counts_before_the_time_is_over_and_not_after_it(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", TIMEOUT_S)
    drop = await make_drop(pool)
    async with (
        Receiver(delay_s=BEFORE_S).listening() as early,
        Receiver(delay_s=AFTER_S).listening() as late,
        opened(settings) as relay,
    ):
        in_time = await subscribe(pool, early.url, types=ISSUED)
        too_late = await subscribe(pool, late.url, types=ISSUED)
        await tell(pool, drop, 1)
        counts = await relay.run_once()
        assert (counts.delivered, counts.failed) == (1, 1)
        (counted,) = await attempts(pool, in_time.subscription_no)
        assert (counted["outcome"], counted["status"]) == ("delivered", 200)
        assert BEFORE_S * 1000 <= counted["took_ms"] < TIMEOUT_S * 1000
        assert await queue(pool, in_time.subscription_no) == []
        (missed,) = await attempts(pool, too_late.subscription_no)
        assert (missed["outcome"], missed["status"]) == ("failed", None)
        assert missed["error"] == "no complete answer within 2 s (waiting for the answer)"
        assert TIMEOUT_S * 1000 <= missed["took_ms"] < AFTER_S * 1000
        (again,) = await queue(pool, too_late.subscription_no)
        assert again["attempt_count"] == 1
