"""The relays' clock is Postgres', whatever becomes of this machine's own."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

import pytest
import structlog

from couponsvc.outbox.leasing import Pool
from couponsvc.outbox.ledger_clock import LedgerClock, utc_now
from couponsvc.settings import Settings
from couponsvc.support import metrics
from couponsvc.support.postgres import open_pool

NEAR_S = 0.3
"""Far more than a round trip on a busy machine, far less than what the clocks are set off by."""


class Steady:
    """The monotonic clock; a jump looks as if Postgres' clock had been set the other way."""

    def __init__(self) -> None:
        self.jump_s = 0.0
        self.late_s: list[float] = []
        """How much later than now the next readings are."""

    def __call__(self) -> float:
        return monotonic() + self.jump_s + (self.late_s.pop(0) if self.late_s else 0.0)


@pytest.fixture
def logged() -> "Iterator[list[Any]]":
    with structlog.testing.capture_logs() as lines:
        yield lines


def warnings(logged: "list[Any]") -> list[str]:
    return [line["event"] for line in logged if line["log_level"] == "warning"]


async def off_by_s(clock: LedgerClock, pool: Pool) -> float:
    """By how much the clock is ahead of Postgres'."""
    before = clock()
    moment: datetime = await pool.fetchval("SELECT clock_timestamp()")
    after = clock()
    return (before + (after - before) / 2 - moment).total_seconds()


@pytest.mark.parametrize("wrong", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_wall_clock_that_is_off_changes_nothing_and_is_told_once(
    pool: Pool, logged: "list[Any]", wrong: timedelta
) -> None:
    clock = LedgerClock(pool, wall=lambda: utc_now() + wrong)
    for _ in range(3):
        await clock.follow()
    assert abs(await off_by_s(clock, pool)) < NEAR_S
    assert len(warnings(logged)) == 1
    (shown,) = [
        float(line.split()[1])
        for line in metrics.render().decode().splitlines()
        if line.startswith("couponsvc_relay_clock_difference_seconds ")
    ]
    assert abs(shown - wrong.total_seconds()) < NEAR_S


async def test_a_wall_clock_that_is_set_while_it_runs_is_told_each_time_it_goes_wrong(
    pool: Pool, logged: "list[Any]"
) -> None:
    wrong = timedelta(0)
    clock = LedgerClock(pool, wall=lambda: utc_now() + wrong)
    told = []
    for wrong_s in (0.0, 60.0, 60.0, 0.0, -60.0):
        wrong = timedelta(seconds=wrong_s)
        await clock.follow()
        told.append(len(warnings(logged)))
        assert abs(await off_by_s(clock, pool)) < NEAR_S
    assert told == [0, 1, 1, 1, 2]


async def test_the_quickest_look_counts_and_a_slow_one_does_not(pool: Pool) -> None:
    steady = Steady()
    clock = LedgerClock(pool, steady_s=steady)
    for _ in range(5):
        await clock.follow()
    before_s = await off_by_s(clock, pool)
    steady.late_s = [0.0, 5.0]  # asked at once, heard late: the middle is 2.5 s off
    await clock.follow()
    assert abs(before_s) < NEAR_S
    assert abs(await off_by_s(clock, pool)) < NEAR_S


async def test_after_a_sleep_of_this_machine_the_clock_is_right_at_once(
    pool: Pool, logged: "list[Any]"
) -> None:
    steady = Steady()
    clock = LedgerClock(pool, steady_s=steady)
    await clock.follow()
    steady.jump_s = -30.0  # the monotonic clock stood still meanwhile
    steady.late_s = [0.0, NEAR_S]  # and the look that shows it is a poor one
    await clock.follow()
    assert abs(await off_by_s(clock, pool)) < NEAR_S
    assert len(warnings(logged)) == 1


async def test_a_small_correction_backwards_is_waited_out_and_a_great_one_is_made(pool: Pool) -> None:
    steady = Steady()
    clock = LedgerClock(pool, steady_s=steady)
    await clock.follow()
    steady.jump_s = 0.6
    ahead = clock()
    await clock.follow()
    assert [clock(), clock()] == [ahead, ahead], "it stands still"
    await asyncio.sleep(1)
    assert clock() > ahead
    assert abs(await off_by_s(clock, pool)) < NEAR_S

    steady.jump_s = 3_600.0
    steady.late_s = [0.0, 0.0, NEAR_S]
    ahead = clock()
    await clock.follow()
    assert ahead - clock() > timedelta(minutes=59)
    assert abs(await off_by_s(clock, pool)) < NEAR_S


async def test_without_postgres_the_clock_goes_on(settings: Settings) -> None:
    lost = await open_pool(settings.postgres_dsn.get_secret_value())
    clock = LedgerClock(lost, wall=lambda: utc_now() + timedelta(hours=1))
    try:
        await clock.follow()
    finally:
        lost.terminate()
    first = clock()
    await clock.follow()
    await asyncio.sleep(0.2)
    second = clock()
    assert timedelta(seconds=0.15) < second - first < timedelta(seconds=0.2 + 2)
    assert abs((second - utc_now()).total_seconds()) < NEAR_S, "it has not gone over to the wall clock"


async def test_before_the_first_look_the_clock_is_the_wall_s(settings: Settings) -> None:
    never = await open_pool(settings.postgres_dsn.get_secret_value())
    never.terminate()
    clock = LedgerClock(never, wall=lambda: utc_now() + timedelta(hours=1))
    await clock.follow()
    assert timedelta(minutes=59) < clock() - utc_now() < timedelta(minutes=61)
