"""Receivers that are dead, silent or slow beside a good one."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from couponsvc.outbox import retries
from couponsvc.outbox.leasing import Pool
from couponsvc.outbox.relay import STOP_GRACE_S
from couponsvc.settings import Settings
from couponsvc.values.event import EventType
from tests.integration.scene import make_drop
from tests.receivers import Receiver, attempts, queue, subscribe, subscription
from tests.relays import at_work, opened, tell

ISSUED = [EventType.VOUCHER_ISSUED.public]
EVENTS_COUNT = 60


@contextlib.asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """A URL at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


@pytest.mark.faults
async def test_bad_receivers_do_not_hold_up_a_good_one_and_are_given_up_at_a_stop(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool, quantity=EVENTS_COUNT)
    async with (
        Receiver().listening() as good,
        Receiver(behaviour="hang").listening() as silent,
        Receiver(behaviour="drip").listening() as slow,
        refusing() as dead_url,
        opened(settings) as relay,
        contextlib.AsyncExitStack() as work,
    ):
        bad = [await subscribe(pool, url, types=ISSUED) for url in (silent.url, slow.url, dead_url)]
        well = await subscribe(pool, good.url, types=ISSUED)
        end = await work.enter_async_context(at_work(relay))
        began_at = monotonic()
        for _ in range(EVENTS_COUNT):
            await tell(pool, drop, 1)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while len(good.requests) < EVENTS_COUNT or await queue(pool, well.subscription_no):
                await asyncio.sleep(0.01)
        took_s = monotonic() - began_at
        # All of it, while those two have not even ended their first attempts.
        assert (silent.at_once, slow.at_once) == (2, 2)
        for subscribed in bad[:2]:
            assert await attempts(pool, subscribed.subscription_no) == []
        failing = await subscription(pool, bad[2].subscription_no)
        assert failing["failure_count"] >= retries.FAILING_FROM_COUNT
        assert len(await attempts(pool, bad[2].subscription_no)) < EVENTS_COUNT / 4, "it is held back"
        lags = [r.at for r in good.requests]
        assert max(lags) - began_at <= took_s

        asked_at = monotonic()
        await end()
        assert monotonic() - asked_at < STOP_GRACE_S + 2
        assert await pool.fetchval("SELECT count(*) FROM deliveries WHERE leased_by IS NOT NULL") == 0
        for subscribed in bad[:2]:
            rows = await queue(pool, subscribed.subscription_no)
            assert len(rows) == EVENTS_COUNT
            assert {row["attempt_count"] for row in rows} == {0}, "given up is not failed"
