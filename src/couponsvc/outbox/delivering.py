"""Makes deliveries: leases what can start now, posts it signed, and has its outcome noted.

Nothing is leased to wait in memory. A delivery takes its place among those under way when it is leased
and leaves it when its outcome is noted, so that Postgres being away holds up new ones, too.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from couponsvc import limits
from couponsvc.outbox import metrics, settling
from couponsvc.outbox.attempting import Attempter
from couponsvc.outbox.endpoints import ROOM_FIRST, Rooms
from couponsvc.outbox.leasing import PROBES_MAX_COUNT, Lease, Pool, RelayNumber, give_back, lease_due
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.settling import Outcome, Remainder, Settler
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks
from couponsvc.support.guarded_url import TooManyLookUps
from couponsvc.support.kill_points import kill_point
from couponsvc.support.service_loop import repeat
from couponsvc.values.event import Event

POLL_EVERY_S: Final = 1.0
"""How often the queue is looked at unasked: retries and probes are due to the second, not better."""
READ_COUNT: Final = 16
"""Events read at once: at most some 40 ms of rendering, during which nothing else runs."""
SETTLE_MAX_COUNT: Final = 128
"""Outcomes noted in one transaction."""
NEEDED: Final = timedelta(seconds=limits.WEBHOOK_TIMEOUT_S)
"""What must be left of a lease when its delivery starts."""

BROKEN_OFF_PAUSE_S: Final = 1.0
"""After an error that nobody foresaw, or where too many names are being looked up, before the delivery is
free for the next attempt. It keeps its place meanwhile, so that it takes no more than what is attempted."""
NOTE_AT_END_S: Final = 2.0
"""How long a relay that stops tries to note outcomes."""

_BEFORE_DELIVERY: Final = kill_point("relay.before_delivery")
_AFTER_DELIVERY: Final = kill_point("relay.after_delivery")
_AFTER_MARK: Final = kill_point("relay.after_mark")

_log = logs.get("couponsvc.outbox.delivering")


class DeliveryCounts(NamedTuple):
    """What became of deliveries."""

    delivered: int = 0
    failed: int = 0
    parked: int = 0
    """Of the failed ones, those given up."""


class Deliverer:
    """Deliveries under way from this relay. Use `run` or `run_once`."""

    def __init__(
        self,
        *,
        pool: Pool,
        number: RelayNumber,
        wake: asyncio.Event,
        reader: EventReader,
        attempter: Attempter,
        clock: Callable[[], datetime],
        remainder: Remainder,
    ) -> None:
        """Put a deliverer together; nothing of it is closed by it."""
        self._pool: Final = pool
        self._number: Final = number
        self._reader: Final = reader
        self._attempter: Final = attempter
        self._clock: Final = clock
        self._settler: Final = Settler(pool, remainder)
        self._rooms: Final = Rooms()
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._under_way: Final[set[tuple[int, int]]] = set()
        """Subscription and event of each, until its outcome is noted."""
        self._outcomes: list[Outcome] = []
        self._given_back: list[Lease] = []
        self._batch: Sequence[Outcome] = ()
        """What is being noted; stays until Postgres has it for certain."""
        self._wake: Final = wake
        """Something may be due."""
        self._hungry: set[int] = set()
        """Endpoints that got all they had room for: more may be waiting for the next place."""
        self._all_hungry = False
        self._ended: Final = asyncio.Event()
        """Something can be noted."""

    async def run(self, stop: asyncio.Event, grace_s: float) -> None:
        """Deliver until `stop` is set, whatever Postgres and the receivers do.

        Then deliveries under way may end within `grace_s`; the others are given up, everything is noted.
        """
        await asyncio.gather(
            repeat("deliver", self._lease_turn, stop, on_error=metrics.task_failures.labels("deliver").inc),
            repeat("settle", self._settle_turn, stop, on_error=metrics.task_failures.labels("settle").inc),
            self._when_stopped(stop),
        )
        await self._end_all(grace_s)

    async def run_once(self) -> DeliveryCounts:
        """Deliver everything that is due, to its end.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
        """
        total = DeliveryCounts()
        while await self._start_due() or self._tasks:
            await asyncio.gather(*self._tasks)
            while self._unnoted:
                total = DeliveryCounts(*map(sum, zip(total, await self._settle(), strict=True)))
        return total

    async def _when_stopped(self, stop: asyncio.Event) -> None:
        """End the waits of the loops."""
        await stop.wait()
        self._wake.set()
        self._ended.set()

    async def _end_all(self, grace_s: float) -> None:
        """What cannot be noted, because Postgres is away, is delivered again by another relay."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        await end_tasks(*self._tasks)
        try:
            async with asyncio.timeout(NOTE_AT_END_S):
                while self._unnoted:
                    await self._settle()
        except Exception as error:  # noqa: BLE001 - we end; whoever goes on repeats it
            left = self._rooms.in_flight_count
            _log.warning("outcomes not noted", error=type(error).__name__, deliveries=left)

    async def _lease_turn(self) -> float:
        """Start what is due; then wait for a reason to look again."""
        self._wake.clear()
        await self._start_due()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), POLL_EVERY_S)
        return 0.0

    async def _settle_turn(self) -> float:
        """Note what has ended; waits for something."""
        if not self._unnoted:  # else the turn before failed
            await self._ended.wait()
        self._ended.clear()
        while self._unnoted:
            await self._settle()
        return 0.0

    @property
    def _unnoted(self) -> bool:
        return bool(self._outcomes or self._batch or self._given_back)

    async def _start_due(self) -> int:
        """Lease and start; how many."""
        relay_no, room = self._number.number, self._rooms.left
        if relay_no is None or room <= 0:
            return 0
        rooms = self._rooms.by_endpoint()
        leases = await lease_due(
            self._pool,
            relay_no,
            self._clock(),
            room=room,
            rooms=rooms,
            room_elsewhere=ROOM_FIRST,
            probe_room=self._rooms.probes_left(PROBES_MAX_COUNT),
        )
        # A crash of Postgres may have undone a lease: its delivery, still under way, has it again now.
        unread = [lease for lease in leases if lease[:2] not in self._under_way]
        for lease in unread:
            self._rooms.take(lease)
            self._under_way.add(lease[:2])
        self._note_hunger(leases, room, rooms)
        started_count = len(unread)
        try:
            while unread:
                await self._start_some(unread)
        finally:
            self._end(unread)  # none, unless they could not be read
        metrics.in_flight.set(self._rooms.in_flight_count)
        return started_count

    def _note_hunger(self, leases: Sequence[Lease], room: int, rooms: Mapping[int, int]) -> None:
        """Remember whom a place that becomes free is worth another look at the queue."""
        taken = Counter(lease.subscription_no for lease in leases)
        probed = {lease.subscription_no for lease in leases if lease.probe}
        full = {number for number, count in taken.items() if count >= rooms.get(number, ROOM_FIRST)}
        full.update(number for number, room_there in rooms.items() if room_there == 0)
        self._all_hungry = len(leases) >= room
        self._hungry = full | probed
        room_now = self._rooms.by_endpoint()
        if any(room_now.get(number, ROOM_FIRST) for number in full - probed):  # since we asked
            self._wake.set()

    async def _start_some(self, unread: list[Lease]) -> None:
        """Read the events of the first leases and start those; they leave the list."""
        leases = unread[:READ_COUNT]
        events = await self._reader.by_numbers(sorted({lease.event_no for lease in leases}))
        del unread[:READ_COUNT]
        by_number = {event.event_no: event for event in events}
        unable = [lease for lease in leases if not self._start(lease, by_number.get(lease.event_no))]
        if unable:
            try:
                await settling.put_off(self._pool, unable, self._clock())
            finally:
                self._end(unable)

    def _start(self, lease: Lease, event: Event | None) -> bool:
        """Begin a delivery; False where this relay cannot."""
        secrets = self._attempter.secrets_for(lease, event)
        if event is None or secrets is None:
            return False
        task = asyncio.create_task(self._deliver(lease, event, secrets))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _deliver(self, lease: Lease, event: Event, secrets: Sequence[str]) -> None:
        """One attempt. Ends with an outcome or with the lease given back, whatever happens."""
        if lease.leased_until - self._clock() < NEEDED:  # we were paused; another relay may have it by now
            self._end([lease])
            return
        try:
            _BEFORE_DELIVERY()
            outcome = await self._attempter.attempt(lease, event, secrets)
            _AFTER_DELIVERY()
        except asyncio.CancelledError:
            self._end([lease])
            raise
        except TooManyLookUps:  # says nothing of the receiver
            metrics.untried.inc()
            await self._end_later(lease)
            return
        except Exception:  # noqa: BLE001 - a bug of ours: whoever has the lease next tries again
            _log.exception("delivery broke off", event_no=event.event_no)
            await self._end_later(lease)
            return
        self._outcomes.append(outcome)
        self._ended.set()

    async def _end_later(self, lease: Lease) -> None:
        try:
            await asyncio.sleep(BROKEN_OFF_PAUSE_S)
        finally:
            self._end([lease])

    def _end(self, leases: Sequence[Lease]) -> None:
        """These are not attempted, or not to their end."""
        if leases:
            self._given_back += leases
            self._ended.set()

    async def _settle(self) -> DeliveryCounts:
        """Note some of what has ended; raises where it must be repeated, with nothing lost."""
        if not self._batch:
            self._batch, self._outcomes = self._outcomes[:SETTLE_MAX_COUNT], self._outcomes[SETTLE_MAX_COUNT:]
        batch, now = self._batch, self._clock()
        if batch:
            await self._settler.settle(batch, now)
            _AFTER_MARK()
        self._batch = ()
        for outcome in batch:
            accepted, took_ms = outcome.kind == "delivered", outcome.result.took_ms
            self._rooms.note(outcome.lease, accepted=accepted, took_ms=took_ms)
            self._leave(outcome.lease)
        returned, self._given_back = self._given_back, []
        try:
            await give_back(self._pool, returned)
        finally:
            for lease in returned:
                self._leave(lease)
        metrics.in_flight.set(self._rooms.in_flight_count)
        kinds = [outcome.kind for outcome in batch]
        parked = sum(outcome.parked_because is not None for outcome in batch)
        return DeliveryCounts(kinds.count("delivered"), len(kinds) - kinds.count("delivered"), parked)

    def _leave(self, lease: Lease) -> None:
        self._rooms.leave(lease)
        self._under_way.discard(lease[:2])
        if self._all_hungry or lease.subscription_no in self._hungry:
            self._wake.set()
