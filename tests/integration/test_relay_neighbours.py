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
LATE_S = 3.0
"""For an event of a good receiver, from its commit on: a hang would be 15 s, the usual is 0.1 s."""
ANSWERS_AFTER_S = 5.0
"""A slow receiver: its answer counts, and comes later than any that the good one may have to wait for."""


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
        Receiver(behaviour="drip").listening() as dripping,
        Receiver(delay_s=ANSWERS_AFTER_S).listening() as slow,
        refusing() as dead_url,
        opened(settings) as relay,
        contextlib.AsyncExitStack() as work,
    ):
        bad = [await subscribe(pool, url, types=ISSUED) for url in (silent.url, dripping.url, dead_url)]
        await subscribe(pool, slow.url, types=ISSUED)
        well = await subscribe(pool, good.url, types=ISSUED)
        end = await work.enter_async_context(at_work(relay))
        told_at = []
        for _ in range(EVENTS_COUNT):
            told_at.append(monotonic())
            await tell(pool, drop, 1)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while len(good.requests) < EVENTS_COUNT or await queue(pool, well.subscription_no):
                await asyncio.sleep(0.01)
        # All of it, while those two have not even ended their first attempts.
        assert (silent.at_once, dripping.at_once) == (2, 2)
        assert slow.at_once > 0
        for subscribed in bad[:2]:
            assert await attempts(pool, subscribed.subscription_no) == []
        failing = await subscription(pool, bad[2].subscription_no)
        assert failing["failure_count"] >= retries.FAILING_FROM_COUNT
        assert len(await attempts(pool, bad[2].subscription_no)) < EVENTS_COUNT / 4, "it is held back"
        received_at = {int(r.webhook_id.removeprefix("evt_")): r.at for r in good.requests}
        lags_s = [at - told for (_, at), told in zip(sorted(received_at.items()), told_at, strict=True)]
        assert max(lags_s) < LATE_S

        asked_at = monotonic()
        await end()
        assert monotonic() - asked_at < STOP_GRACE_S + 2
        assert await pool.fetchval("SELECT count(*) FROM deliveries WHERE leased_by IS NOT NULL") == 0
        for subscribed in bad[:2]:
            rows = await queue(pool, subscribed.subscription_no)
            assert len(rows) == EVENTS_COUNT
            assert {row["attempt_count"] for row in rows} == {0}, "given up is not failed"
