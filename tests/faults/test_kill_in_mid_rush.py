"""kill -9 in the middle of a rush: after healing every 201 stands and the whole stock is issued."""

import asyncio
import shutil
from collections.abc import Callable

import pytest

from couponsvc.client import GrabClient
from couponsvc.support.ending import end_tasks
from tests.faults.rush import Rush, Up, copy_owned, running_up
from tests.servers import short_directory

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

QUANTITY = 3_000
PERSONS = 3_600


async def rush_with(fault: Callable[[Up], None], *options: str, times: int = 2) -> Rush:
    with short_directory() as base:
        async with running_up(base / "data", *options) as up:
            rush = Rush(up, QUANTITY, PERSONS)
            await asyncio.to_thread(rush.define)
            running = asyncio.create_task(rush.run())
            try:
                for done in range(1, times + 1):
                    while len(rush.first_201) < done * QUANTITY // (times + 2):
                        assert not running.done(), "the rush ended before the fault"
                        await asyncio.sleep(0.002)
                    await asyncio.to_thread(fault, up)
                await running
            finally:
                await end_tasks(running)
            await rush.judge()
            return rush


@pytest.mark.parametrize("kind", ["api", "drain", "reconcile", "relay", "redis", "postgres"])
async def test_killing_any_process_twice_loses_and_doubles_nothing(kind: str) -> None:
    await rush_with(lambda up: up.kill(kind))


async def test_losing_redis_with_all_its_data_loses_and_doubles_nothing() -> None:
    def wipe(up: Up) -> None:
        up.wait_for("redis")
        with up.supervision_paused():
            up.kill("redis")
            up.gone("redis")
            shutil.rmtree(up.data_dir / "redis" / "appendonlydir")

    await rush_with(wipe)


async def test_a_redis_restored_from_an_older_copy_is_checked_before_it_answers() -> None:
    with short_directory() as copies:
        old = copies / "old"

        def fault(up: Up) -> None:
            if not old.exists():
                copy_owned(up.data_dir / "redis", old)
                return
            up.wait_for("redis")
            with up.supervision_paused():
                up.kill("redis")
                up.gone("redis")
                copy_owned(old, up.data_dir / "redis")

        await rush_with(fault)


async def test_postgres_away_for_20_seconds_means_202_and_then_every_one_confirmed() -> None:
    with short_directory() as base:
        async with running_up(base / "data") as up:
            rush = Rush(up, QUANTITY, PERSONS)
            await asyncio.to_thread(rush.define)
            running = asyncio.create_task(rush.run())
            while len(rush.first_201) < QUANTITY // 4:
                await asyncio.sleep(0.002)
            with up.supervision_paused():
                await asyncio.to_thread(up.kill, "postgres")
                await asyncio.sleep(1)  # what was committed before the kill is still being answered
                before = len(rush.first_201)
                last = PERSONS - 1  # of the crowd, but not its turn yet
                async with GrabClient(up.url, up.key) as client:
                    person, number = f"canary-person-{last}", f"canary-{rush.drop_id}-{last}"
                    answer = await client.grab(rush.drop_id, person, number)
                await asyncio.sleep(18)
                told_meanwhile = len(rush.first_201) - before
            assert answer.status == 202, (answer.status, answer.body)
            assert told_meanwhile == 0, "issued was said without Postgres"
            await running
            await rush.judge()


async def test_a_healed_service_keeps_its_data_over_a_restart_of_everything() -> None:
    with short_directory() as base:
        async with running_up(base / "data") as up:
            rush = Rush(up, 200, 220)
            await asyncio.to_thread(rush.define)
            await rush.run()
            await rush.judge()
        async with running_up(base / "data") as again:
            rush.up = again
            await rush.judge()
