"""Relays killed and paused between a delivery and its note; Postgres away and back."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest
from standardwebhooks.webhooks import Webhook

from couponsvc import limits
from couponsvc.outbox.leasing import Pool
from couponsvc.settings import Settings
from couponsvc.support import kill_points
from couponsvc.support.postgres import open_pool
from couponsvc.values.event import EventType
from tests.faults import relay_process
from tests.faults.relay_process import RelayProcess
from tests.integration.scene import issue, make_drop
from tests.receivers import Received, Receiver, attempts, queue, subscribe, subscription
from tests.relays import at_work, opened, tell
from tests.servers import PostgresServer

pytestmark = pytest.mark.faults

ISSUED = [EventType.VOUCHER_ISSUED.public]
PATIENCE_S = 30.0
SOON_S = limits.LEASE_S / 3
"""Far less than a lease: the next relay did not wait for its end."""


async def until(claim: Callable[[], Awaitable[bool]], what: str) -> None:
    give_up_at = monotonic() + PATIENCE_S
    while not await claim():
        assert monotonic() < give_up_at, f"still not so: {what}"
        await asyncio.sleep(0.02)


async def until_received(receiver: Receiver, count: int) -> None:
    async def enough() -> bool:
        return len(receiver.requests) >= count

    await until(enough, f"{count} requests")


async def until_empty(pool: Pool, subscription_no: int) -> None:
    async def empty() -> bool:
        return not await queue(pool, subscription_no)

    await until(empty, "the queue is empty")


async def test_killed_before_the_note_the_next_relay_sends_the_same_again_at_once(
    settings: Settings, pool: Pool, tmp_path: Path
) -> None:
    drop = await make_drop(pool, quantity=10)
    relays: list[RelayProcess] = []
    killed_at: list[float] = []

    def kill_the_first(_: Received) -> None:
        if not killed_at:
            relays[0].signal(signal.SIGKILL)
            killed_at.append(monotonic())

    async with Receiver(on_request=kill_the_first).listening() as receiver:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        with relay_process.running(settings, tmp_path / "first.log") as first:
            relays.append(first)
            await issue(pool, drop, 5)
            await until_received(receiver, 1)
            (left,) = await queue(pool, subscribed.subscription_no)
            assert left["leased_by"] is not None, "nobody could note anything"
            assert await attempts(pool, subscribed.subscription_no) == []
            with relay_process.running(settings, tmp_path / "second.log") as second:
                await until_received(receiver, 2)
                assert monotonic() - killed_at[0] < SOON_S
                await until_empty(pool, subscribed.subscription_no)
                second.signal(signal.SIGTERM)
                assert second.process.wait(PATIENCE_S) == 0
        before, after = receiver.requests
        assert (before.webhook_id, before.body) == (after.webhook_id, after.body)
        Webhook(subscribed.secret).verify(after.body, after.headers)
        assert [row["outcome"] for row in await attempts(pool, subscribed.subscription_no)] == ["delivered"]
        for name in ("first.log", "second.log"):
            log = (tmp_path / name).read_text()
            assert subscribed.secret not in log
            assert receiver.url not in log


@contextlib.contextmanager
def relay_that_dies_at(point: str, settings: Settings, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A relay that kills itself there; killed at the end, if it never came that far."""
    (directory / point).write_text(kill_points.KILL)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COUPONSVC_")},
        "COUPONSVC_REDIS_URL": settings.redis_url,
        "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "COUPONSVC_MASTER_KEY": settings.master_key.get_secret_value(),
        "COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true",
        kill_points.VARIABLE: str(directory),
    }
    with (directory / "relay.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "couponsvc", "relay"], stdout=log, stderr=log, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("point", ["relay.before_delivery", "relay.after_delivery", "relay.after_mark"])
async def test_killed_while_it_probes_a_failing_endpoint_the_next_relay_probes_at_once(
    settings: Settings, pool: Pool, tmp_path: Path, point: str
) -> None:
    drop = await make_drop(pool, quantity=10)
    async with Receiver().listening() as receiver, opened(settings) as other:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        await tell(pool, drop, 5)
        await pool.execute("UPDATE subscriptions SET failure_count = 5, held_until = now()")
        with relay_that_dies_at(point, settings, tmp_path) as relay:
            await asyncio.to_thread(relay.wait, PATIENCE_S)
            assert relay.returncode == -signal.SIGKILL
        assert (tmp_path / f"{point}{kill_points.HIT_SUFFIX}").exists()
        died_at = monotonic()
        async with at_work(other):
            await until_empty(pool, subscribed.subscription_no)
        assert monotonic() - died_at < SOON_S
        assert (await subscription(pool, subscribed.subscription_no))["failure_count"] == 0


async def test_killed_again_and_again_nothing_is_lost(settings: Settings, pool: Pool, tmp_path: Path) -> None:
    """Every twentieth request kills whoever sends it; a new relay goes on."""
    drop = await make_drop(pool, quantity=60)
    current: list[RelayProcess] = []
    kills = Counter[str]()

    def kill_sometimes(_: Received) -> None:
        if len(receiver.requests) % 20 == 0 and kills["relay"] < 2:
            kills["relay"] += 1
            current[-1].signal(signal.SIGKILL)

    async with Receiver(on_request=kill_sometimes, delay_s=0.02).listening() as receiver:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        async with opened(settings):  # makes the partitions
            await tell(pool, drop, 60)
        for number in range(3):
            with relay_process.running(settings, tmp_path / f"{number}.log") as relay:
                current.append(relay)
                while relay.process.poll() is None and await queue(pool, subscribed.subscription_no):
                    await asyncio.sleep(0.02)
        assert kills["relay"] == 2
        assert await queue(pool, subscribed.subscription_no) == []
        seqs = Counter(request.event["data"]["vouchers"][0]["seq"] for request in receiver.requests)
        assert set(seqs) == set(range(1, 61))
        repeated = sum(seqs.values()) - len(seqs)
        assert repeated <= 2 * limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT, "only what was under way"
        bodies = {(request.webhook_id, request.body) for request in receiver.requests}
        assert len(bodies) == 60, "the same bytes each time"


async def test_paused_too_long_another_takes_over_and_the_late_note_does_no_harm(
    settings: Settings, pool: Pool, tmp_path: Path
) -> None:
    drop = await make_drop(pool, quantity=10)
    relays: list[RelayProcess] = []
    paused: list[Received] = []

    def pause_the_first(request: Received) -> None:
        if not paused:
            relays[0].signal(signal.SIGSTOP)
            paused.append(request)

    async with Receiver(on_request=pause_the_first).listening() as receiver, opened(settings) as other:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        with relay_process.running(settings, tmp_path / "paused.log") as first:
            relays.append(first)
            await issue(pool, drop, 5)
            await until_received(receiver, 1)
            assert (await other.run_once()).freed == 0, "it lives, and its lease has not ended"
            await pool.execute("UPDATE deliveries SET leased_until = leased_until - interval '1 minute'")
            counts = await other.run_once()
            assert (counts.freed, counts.delivered) == (1, 1)
            await issue(pool, drop, 1)
            assert (await other.run_once()).delivered == 1
            first.signal(signal.SIGCONT)

            async def noted() -> bool:
                return len(await attempts(pool, subscribed.subscription_no)) == 3

            await until(noted, "the attempt that was answered long ago is recorded")
            assert await queue(pool, subscribed.subscription_no) == []
            await issue(pool, drop, 1)
            await until_received(receiver, 4)
            await until_empty(pool, subscribed.subscription_no)
        assert sorted(Counter(receiver.ids).values()) == [1, 1, 2]


async def test_postgres_restarted_under_it_the_relay_goes_on_with_what_it_had(
    settings: Settings, postgres_server: PostgresServer, database: str
) -> None:
    pool = await open_pool(database)
    drop = await make_drop(pool, quantity=10)
    async with (
        Receiver(delay_s=1.0).listening() as receiver,
        opened(settings) as relay,
        contextlib.AsyncExitStack() as work,
    ):
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        end = await work.enter_async_context(at_work(relay))
        await issue(pool, drop, 1)
        await until_received(receiver, 1)
        pool.terminate()
        await asyncio.to_thread(postgres_server.restart)
        pool = await open_pool(database)
        await until_empty(pool, subscribed.subscription_no)
        await issue(pool, drop, 1)
        await until_received(receiver, 2)
        await until_empty(pool, subscribed.subscription_no)
        async with asyncio.timeout(10):
            await end()
        assert sorted(Counter(receiver.ids).values()) == [1, 1], "it knew what it had delivered"
    pool.terminate()
