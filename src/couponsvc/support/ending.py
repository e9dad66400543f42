"""Ending tasks, so that they have ended."""

import asyncio
from typing import Any, Final

CANCEL_AGAIN_S: Final = 0.5
"""Long enough for a task to tidy up after the first time."""


async def end_tasks(*tasks: "asyncio.Future[Any] | None", again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel tasks and wait until each has ended, however it ended.

    Once is not enough before Python 3.12: where what `asyncio.wait_for` waits for ends in the same turn of
    the loop, it keeps the cancellation to itself and returns (https://github.com/python/cpython/issues/86296).
    redis-py sends every command in it, so a loop that reconnects goes on for ever, and whoever waits for
    its end does, too.

    Args:
        tasks: None and what has ended already are passed over.
        again_s: until those that have not ended are cancelled once more, in seconds.
    """
    waiting = {task for task in tasks if task is not None}
    while waiting:
        for task in waiting:
            task.cancel()
        ended, waiting = await asyncio.wait(waiting, timeout=again_s)
        for task in ended:
            if not task.cancelled():
                task.exception()  # it is known of; the loop need not tell
