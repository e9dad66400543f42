"""What a relay does beside the flow: partitions, and what is to be cleared out of the queue.

Some of it is long (a subscription with millions of deliveries was deleted), and some of it may fail
for long (a table that somebody else holds). So each step is tried by itself, takes pieces with pauses
between them, and is cut off after a while for the sake of the others; the next turn goes on with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from time import monotonic
from typing import Final, TypeAlias

from couponsvc.outbox import attempt_counts, metrics, partitions, retries, subscriptions
from couponsvc.outbox.leasing import Pool
from couponsvc.outbox.settling import RELEASED_MAX_COUNT, Remainder, release
from couponsvc.support.service_loop import Trouble, pause, repeat
from couponsvc.support.sql import Queries

TEND_EVERY_S: Final = 60.0
STEP_MAX_S: Final = 5.0
"""Of one step, before the others have their turn."""
CHUNK_COUNT: Final = 5_000
"""Queue rows changed by one statement: some tenths of a second."""

Step: TypeAlias = Callable[[asyncio.Event], Awaitable[bool]]
"""Returns whether it is done; ends early, without being done, once the event is set."""

_queries: Final = Queries("couponsvc.outbox", "tending")


class Tender:
    """Clears up. Use `run` or `run_once`; several relays may do so at once."""

    def __init__(
        self,
        pool: Pool,
        clock: Callable[[], datetime],
        remainder: Remainder,
        on_released: Callable[[], None],
        *,
        events_kept_days: int,
        attempts_kept_days: int,
    ) -> None:
        """Put a tender together.

        Args:
            pool: To Postgres; not closed by it.
            clock: Aware UTC.
            remainder: What settling leaves to it.
            on_released: Called when deliveries became due.
            events_kept_days: How long events are kept at least; 0: for ever.
            attempts_kept_days: How long delivery attempts are kept.
        """
        self._pool: Final = pool
        self._clock: Final = clock
        self._remainder: Final = remainder
        self._on_released: Final = on_released
        self._events_kept_days: Final = events_kept_days
        self._attempts_kept_days: Final = attempts_kept_days
        self._parked_count = 0
        self._wanted: Final[Mapping[str, Step]] = {
            "release what waits": self._release,
            "park for disabled endpoints": self._park_disabled,
        }
        """What somebody waits for; the steps of a turn that is asked for."""
        self._clearing: Final[Mapping[str, Step]] = {
            **self._wanted,
            "park what is overdue": self._park_overdue,
            "forget deleted subscriptions": self._forget_deleted,
        }
        self._all: Final[Mapping[str, Step]] = {
            **self._clearing,
            "make partitions": self._make_partitions,
            "drop old attempts": self._drop_attempts,
            "drop old events": self._drop_events,
            "wipe secrets that sign no more": self._wipe_ended_secrets,
            "forget counts of deleted subscriptions": self._forget_counts,
        }
        self._troubles: Final = {name: Trouble(name) for name in self._all}
        self._round_at_s = 0.0
        """When all steps are due."""

    async def run(self, stop: asyncio.Event) -> None:
        """Tend until `stop` is set: everything every TEND_EVERY_S, and at once what is asked for."""

        async def turn() -> float:
            return await self._turn(stop)

        async def end_wait() -> None:
            await stop.wait()
            self._remainder.wake.set()

        await asyncio.gather(repeat("tend", turn, stop), end_wait())

    async def run_once(self) -> int:
        """Clear up, to the end, but leave partitions alone; how many deliveries were parked.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
        """
        self._remainder.wake.clear()
        before_count, never = self._parked_count, asyncio.Event()
        for step in self._clearing.values():
            while not await step(never):
                pass
        return self._parked_count - before_count

    async def _turn(self, stop: asyncio.Event) -> float:
        """Take the steps that are due; one that fails does not keep the others from being taken."""
        self._remainder.wake.clear()
        all_due = monotonic() >= self._round_at_s
        waits_s = [await self._take(name, step, stop) for name, step in self._steps(all_due=all_due).items()]
        if all_due or min(waits_s) < TEND_EVERY_S:
            self._round_at_s = monotonic() + min(waits_s)
        try:
            async with asyncio.timeout(max(0.0, self._round_at_s - monotonic())):
                await self._remainder.wake.wait()
        except TimeoutError:
            pass
        return 0.0

    def _steps(self, *, all_due: bool) -> Mapping[str, Step]:
        return self._all if all_due else self._wanted

    async def _take(self, name: str, step: Step, stop: asyncio.Event) -> float:
        """Take a step, whatever it raises; how long the next turn may wait, in seconds."""
        try:
            done = await step(stop)
        except Exception as error:  # noqa: BLE001 - told, and tried again
            metrics.task_failures.labels("tend").inc()
            return self._troubles[name].pause_s(error)
        self._troubles[name].over()
        return TEND_EVERY_S if done else 0.0

    async def _make_partitions(self, _: asyncio.Event) -> bool:
        await partitions.make_partitions(self._pool, self._clock())
        return True

    async def _drop_attempts(self, _: asyncio.Event) -> bool:
        await partitions.drop_attempts(self._pool, self._clock() - timedelta(days=self._attempts_kept_days))
        return True

    async def _drop_events(self, _: asyncio.Event) -> bool:
        if self._events_kept_days:
            await partitions.drop_events(self._pool, self._clock() - timedelta(days=self._events_kept_days))
        return True

    async def _wipe_ended_secrets(self, _: asyncio.Event) -> bool:
        await subscriptions.wipe_ended_secrets(self._pool, self._clock())
        return True

    async def _forget_counts(self, _: asyncio.Event) -> bool:
        await attempt_counts.forget_ended(self._pool)
        return True

    async def _park_disabled(self, stop: asyncio.Event) -> bool:
        return await _in_chunks(
            lambda: self._park("park_disabled", self._clock(), retries.GONE, CHUNK_COUNT), stop
        )

    async def _park_overdue(self, stop: asyncio.Event) -> bool:
        def park() -> Awaitable[int]:
            now = self._clock()
            return self._park(
                "park_overdue",
                now,
                retries.TOO_OLD,
                CHUNK_COUNT,
                now - retries.LADDER,
                retries.FAILING_FROM_COUNT,
            )

        return await _in_chunks(park, stop)

    async def _park(self, query: str, *arguments: object) -> int:
        count: int = await self._pool.fetchval(_queries[query], *arguments)
        self._parked_count += count
        metrics.parked.inc(count)
        return count

    async def _forget_deleted(self, stop: asyncio.Event) -> bool:
        return await _in_chunks(lambda: self._pool.fetchval(_queries["forget_deleted"], CHUNK_COUNT), stop)

    async def _release(self, stop: asyncio.Event) -> bool:
        """Go on with endpoints that accept again, each a piece at a time."""
        accepting = self._remainder.accepting
        while accepting and not stop.is_set():
            began_s = monotonic()
            asked = sorted(accepting)
            released = await release(self._pool, asked, self._clock())
            accepting.difference_update(n for n in asked if released.get(n, 0) < RELEASED_MAX_COUNT)
            self._on_released()
            if accepting:
                await pause(stop, monotonic() - began_s)
        return not accepting


async def _in_chunks(change: Callable[[], Awaitable[int]], stop: asyncio.Event) -> bool:
    """Change piece after piece, and be idle between them for as long as a piece takes; whether it is done."""
    ends_s = monotonic() + STEP_MAX_S
    while not stop.is_set() and monotonic() < ends_s:
        began_s = monotonic()
        if await change() < CHUNK_COUNT:
            return True
        await pause(stop, monotonic() - began_s)
    return False
