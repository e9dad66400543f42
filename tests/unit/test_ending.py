"""Tasks end when they are ended, also those that keep a cancellation to themselves."""

import asyncio
import sys

import pytest

from couponsvc.support.ending import end_tasks


async def wait_again_and_again(bell: asyncio.Event) -> None:
    while True:
        await asyncio.wait_for(bell.wait(), 60)
        bell.clear()


async def resting(task: "asyncio.Task[None]") -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio.wait_for was mended")
async def test_python_keeps_a_cancellation_that_comes_together_with_what_is_waited_for() -> None:
    bell = asyncio.Event()
    task = asyncio.create_task(wait_again_and_again(bell))
    await resting(task)
    bell.set()
    task.cancel()
    await resting(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_such_a_task_is_ended_all_the_same() -> None:
    bell = asyncio.Event()
    task = asyncio.create_task(wait_again_and_again(bell))
    await resting(task)
    bell.set()
    async with asyncio.timeout(5):
        await end_tasks(task, again_s=0.01)
    assert task.cancelled()


async def test_who_ended_before_or_with_an_error_is_no_trouble() -> None:
    async def fails() -> None:
        raise ValueError

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    async def ends() -> None:
        pass

    tasks = [asyncio.create_task(work()) for work in (fails, fails_when_cancelled, ends)]
    await asyncio.sleep(0)
    await end_tasks(*tasks, None)
    assert [type(task.exception()) for task in tasks] == [ValueError, ValueError, type(None)]
    await end_tasks()


async def test_a_task_may_tidy_up_before_it_ends() -> None:
    tidied = asyncio.Event()

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            tidied.set()

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    await end_tasks(task)
    assert tidied.is_set()
    assert task.cancelled()
