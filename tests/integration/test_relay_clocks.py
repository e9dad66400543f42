"""Relays on machines whose wall clocks are wrong: real processes whose clock is set off by libfaketime."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from redis.asyncio import Redis

from couponsvc.api import routes_subscriptions
from couponsvc.outbox import subscriptions
from couponsvc.outbox.leasing import Pool
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.settings import Settings
from couponsvc.values.event import EventType
from couponsvc.values.moment import rfc3339, unix_ms
from tests.faults import relay_process
from tests.faults.harness import clocks
from tests.faults.relay_process import RelayProcess
from tests.integration.house import House
from tests.integration.scene import issue, make_drop
from tests.receivers import Receiver, attempts, queue, subscribe, subscription
from tests.relays import opened, tell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(clocks.library() is None, reason="this machine has no libfaketime"),
]

ISSUED = [EventType.VOUCHER_ISSUED.public]
HOUR_S = 3_600
EVENTS_COUNT = 24
SLOW_S = 1.5
"""An answer takes longer than the second after which relays look for leases that have ended."""
PATIENCE_S = 30.0
NEAR_S = 60.0
"""Of a signature's moment: well within the five minutes for which receivers take it."""


@contextlib.contextmanager
def relay_with(
    settings: Settings, log: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RelayProcess]:
    """A relay process that has this in its environment, too."""
    with monkeypatch.context() as patch, contextlib.ExitStack() as work:
        for name, value in environment.items():
            patch.setenv(name, value)
        relay = work.enter_context(relay_process.running(settings, log))
        patch.undo()
        try:
            yield relay
        finally:
            relay.process.kill()
            relay.process.wait()
            clocks.tidy_up(relay.process.pid)


@contextlib.asynccontextmanager
async def patiently() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def until_logged(relay: RelayProcess, what: str) -> None:
    async with patiently():
        while what not in relay.log():
            await asyncio.sleep(0.05)


async def until_delivered(pool: Pool, subscription_no: int) -> None:
    async with patiently():
        while await queue(pool, subscription_no) or await pool.fetchval("SELECT count(*) FROM outbox"):
            await asyncio.sleep(0.05)


def assert_signed_by_the_right_clock(receiver: Receiver) -> None:
    now_s = time.time()
    moments_s = [int(request.headers["webhook-timestamp"]) for request in receiver.requests]
    assert max(abs(moment_s - now_s) for moment_s in moments_s) < NEAR_S


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
async def test_a_relay_whose_clock_is_off_neither_takes_leases_nor_is_too_early_or_late(
    settings: Settings, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset_s: int
) -> None:
    drop = await make_drop(pool, quantity=2 * EVENTS_COUNT)
    off = clocks.offset_environment(offset_s)
    async with Receiver(delay_s=SLOW_S).listening() as receiver:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        with (
            relay_with(settings, tmp_path / "off.log", off, monkeypatch) as wrong,
            relay_process.running(settings, tmp_path / "right.log") as right,
        ):
            for relay in (wrong, right):
                await until_logged(relay, "relay number")
            await tell(pool, drop, EVENTS_COUNT)
            await issue(pool, drop, 1)  # whichever of them numbers it
            await until_delivered(pool, subscribed.subscription_no)
            assert wrong.log().count("wall clock is not Postgres'") == 1
            assert "wall clock" not in right.log()
            assert "leases freed" not in wrong.log() + right.log()
        assert len(receiver.ids) == EVENTS_COUNT + 1
        assert Counter(receiver.ids).most_common(1)[0][1] == 1
        assert_signed_by_the_right_clock(receiver)
        rows = await attempts(pool, subscribed.subscription_no)
        assert len({row["event_no"] for row in rows}) == len(rows) == EVENTS_COUNT + 1


async def test_a_clock_that_is_set_back_an_hour_delays_nothing(
    settings: Settings, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = await make_drop(pool, quantity=10)
    setting = tmp_path / "clock"
    setting.write_text("+0\n")
    environment = clocks.offset_environment(1) | {
        "FAKETIME_TIMESTAMP_FILE": str(setting),
        "FAKETIME_NO_CACHE": "1",
    }
    del environment["FAKETIME"]  # it would count more than the file
    async with Receiver(status_of=lambda _: 200 if len(receiver.ids) > 3 else 503).listening() as receiver:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        with relay_with(settings, tmp_path / "relay.log", environment, monkeypatch) as relay:
            await until_logged(relay, "relay number")
            await tell(pool, drop, 3)
            async with patiently():
                while len(await attempts(pool, subscribed.subscription_no)) < 3:
                    await asyncio.sleep(0.05)
            setting.write_text(f"-{HOUR_S}\n")
            await until_logged(relay, "wall clock is not Postgres'")
            await until_delivered(pool, subscribed.subscription_no)
        assert len(receiver.ids) == 6
        assert_signed_by_the_right_clock(receiver)


class HourAhead(datetime):
    """An API process's own clock, an hour ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "HourAhead":
        return super().now(tz) + timedelta(seconds=HOUR_S)


async def test_what_the_api_writes_is_by_the_clock_of_postgres(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with House.open(settings, pool, redis) as house:
        subscribed = await subscribe(pool, "https://8.8.8.8/hook", types=ISSUED)
        path = f"/v1/subscriptions/{subscribed.subscription_id}"
        assert (await house.call("POST", f"{path}/test", by="bank-a")).status_code == 202
        async with opened(settings):  # makes the partitions
            await Sequencer(pool).run_once(datetime(2026, 1, 1, tzinfo=UTC))
        await pool.execute("UPDATE deliveries SET parked_at = now(), parked_because = 'x'")
        monkeypatch.setattr(routes_subscriptions, "datetime", HourAhead)
        again = await house.call("POST", f"{path}/redeliver", {"parked": True}, by="bank-a")
        assert again.json() == {"queued": 1}
        (row,) = await queue(pool, subscribed.subscription_no)
        await pool.execute("DELETE FROM deliveries")
        named = {"event_ids": [f"evt_{row['event_no']}"]}
        assert (await house.call("POST", f"{path}/redeliver", named, by="bank-a")).json() == {"queued": 1}
        (row_again,) = await queue(pool, subscribed.subscription_no)
        rotated = (await house.call("POST", f"{path}/rotate-secret", by="bank-a")).json()
        assert (await house.call("DELETE", path, by="bank-a")).status_code == 204
    ended = await subscription(pool, subscribed.subscription_no)
    until, deleted_at = ended["previous_until"], ended["deleted_at"]
    assert rotated["previous_secret_until"] == rfc3339(unix_ms(until))
    now: datetime = await pool.fetchval("SELECT now()")
    for moment in (row["due_at"], row_again["due_at"], until - subscriptions.ROTATION, deleted_at):
        assert abs((moment - now).total_seconds()) < NEAR_S
