"""Feeds one broker from one relay: lease, read, publish, note how far; again.

Who is authoritative: the row in `sinks`. It moves only after the broker has confirmed, so whatever
dies in between, the next turn publishes the same events again: the same ids, the same bytes. Where
two relays believe for a moment that the broker is theirs, both publish and one of them notes it.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from couponsvc import limits
from couponsvc.outbox.leasing import RELAY_LOCKS
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sinks import metrics
from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses, Sink
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks
from couponsvc.support.service_loop import AWAY, pause
from couponsvc.support.sql import Queries
from couponsvc.values.event import Event

TURN_COUNT: Final = 256
"""Events read and published in one turn; ends earlier where they are full (EventReader.all_after)."""
LEASE: Final = timedelta(seconds=limits.LEASE_S)
RENEW_BEFORE: Final = LEASE * 2 / 3
"""A turn begins with at least so much of the lease left, which is more than any turn takes."""
IDLE_S: Final = 0.1
"""Between looks for new events: the larger part of a broker's lag, and ten short queries a second."""
STANDBY_S: Final = 1.0
"""Between looks of a relay whose broker another one feeds."""
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 15.0
"""A broker that is back is fed again within this."""
STOP_S: Final = 2.0
"""What a turn under way may still take when the relay stops; what is cut off is repeated by the next."""

_SQL: Final = Queries("couponsvc.outbox", "sinks")
_log = logs.get("couponsvc.outbox.sinks")


class FeedCounts(NamedTuple):
    """What one turn did."""

    ours: bool
    """Whether the broker is this relay's to feed."""
    events: int = 0
    known: int = 0
    """Of them, what the broker had already."""
    behind: int = 0
    """Events that it has not got yet."""


class Feeder:
    """Feeds one broker. `run_once` is one turn; `run` turns until it is told to stop."""

    def __init__(
        self,
        sink: Sink,
        *,
        pool: "asyncpg.Pool[asyncpg.Record]",
        reader: EventReader,
        relay_no: Callable[[], int | None],
        clock: Callable[[], datetime],
        from_now: bool = False,
    ) -> None:
        """Put a feeder together.

        Args:
            sink: the broker; the feeder opens and closes it.
            pool: to the ledger.
            reader: of events.
            relay_no: this relay's number, or None while it does not hold the lock that says it lives.
            clock: aware UTC; decides about leases.
            from_now: a broker that was never fed begins with the next event, not with the first.
        """
        self._sink = sink
        self._pool = pool
        self._reader = reader
        self._relay_no = relay_no
        self._clock = clock
        self._from_now = from_now
        self._has_row = False
        self._is_open = False
        self._leased_by: int | None = None
        """Under which number the broker is ours, until `_leased_until`."""
        self._leased_until = datetime.min.replace(tzinfo=UTC)
        self._fed = 0
        """Number up to which the broker has every event, while the lease is ours."""
        self._newest = 0
        self._told: str = ""
        """The trouble that was last logged; the same is not told again with each turn."""

    async def run(self, stop: asyncio.Event) -> None:
        """Feed until `stop` is set; rides out the absence of the broker and of Postgres."""
        feeding = asyncio.create_task(self._feed(stop))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({feeding, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({feeding}, timeout=STOP_S)
        finally:
            await end_tasks(feeding, stopping)
            await self.close()

    async def run_once(self) -> FeedCounts:
        """One turn: read the next events, publish them, note it.

        Raises:
            BrokerAway, BrokerRefuses: nothing was noted; the same events come again.
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: the ledger is away.
        """
        if not await self._lease():
            return FeedCounts(ours=False)
        if not self._is_open:
            await self._sink.open()
            self._is_open = True
            _log.info("sink_open", sink=self._sink.name, after_event=self._fed)
        events = await self._reader.all_after(self._fed, TURN_COUNT)
        if not events:
            return FeedCounts(ours=True)
        self._tell_of_missed(events[0])
        known = await self._sink.publish(events)
        ours = await self._advance(events[-1].event_no)
        self._count(events, known)
        return FeedCounts(ours, len(events), known, max(0, self._newest - self._fed) if ours else 0)

    async def close(self) -> None:
        """Leave the broker to the next relay, and disconnect."""
        with suppress(Exception):
            await asyncio.wait_for(self._let_go(), STOP_S)
        await self._shut()

    async def _feed(self, stop: asyncio.Event) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not stop.is_set():
            try:
                pause_s = _pause_after(await self.run_once())
                backoff_s = BACKOFF_FIRST_S
                self._tell("")
            except Exception as error:  # noqa: BLE001 - whatever it was, the other brokers and webhooks go on
                await self._after(error)
                pause_s, backoff_s = backoff_s, min(BACKOFF_MAX_S, backoff_s * 2)
            await pause(stop, pause_s)

    async def _after(self, error: Exception) -> None:
        """Count and tell of a turn that failed; give another relay the chance to do better."""
        match error:
            case BrokerAway():
                reason, tell, said = "away", _log.warning, str(error)
            case BrokerRefuses():
                reason, tell, said = "refused", _log.error, str(error)
            case _ if isinstance(error, AWAY):
                reason, tell, said = "ledger", _log.warning, type(error).__name__
            case _:
                reason, tell, said = "unexpected", _log.exception, type(error).__name__
        metrics.failures.labels(self._sink.name, reason).inc()
        self._tell(f"{reason}: {said}", tell)
        if reason != "ledger":
            await self.close()

    def _tell(self, trouble: str, tell: Callable[..., None] = _log.info) -> None:
        """Log a trouble when it begins or changes, and once when it is over (an empty text)."""
        if trouble != self._told:
            self._told = trouble
            if trouble:
                tell("sink_failed", sink=self._sink.name, error=trouble)
            else:
                tell("sink_goes_on", sink=self._sink.name)

    async def _lease(self) -> bool:
        """Whether the broker is ours; asks Postgres when the lease has less than two thirds left."""
        number, now = self._relay_no(), self._clock()
        if number is not None and number == self._leased_by and self._leased_until - now > RENEW_BEFORE:
            return True
        if number is None:
            return await self._holds(None, None, now)
        if not self._has_row:
            await self._pool.execute(_SQL["begin_sink"], self._sink.name, self._from_now)
            self._has_row = True
        until = now + LEASE
        row = await self._pool.fetchrow(_SQL["lease_sink"], self._sink.name, number, now, until, RELAY_LOCKS)
        return await self._holds(row, number, until)

    async def _advance(self, event_no: int) -> bool:
        """Note that the broker has everything up to `event_no`; whether it is still ours."""
        until = self._clock() + LEASE
        row = await self._pool.fetchrow(
            _SQL["advance_sink"], self._sink.name, self._leased_by, self._fed, event_no, until
        )
        return await self._holds(row, self._leased_by, until)

    async def _holds(self, row: asyncpg.Record | None, number: int | None, until: datetime) -> bool:
        if row is None:
            if self._leased_by is not None:
                _log.warning("sink_taken_over", sink=self._sink.name)
            self._leased_by = None
            metrics.behind.labels(self._sink.name).set(0)  # whoever feeds it knows
            await self._shut()
            return False
        self._leased_by, self._leased_until = number, until
        self._fed, self._newest = row["last_event_no"], row["newest"]
        metrics.behind.labels(self._sink.name).set(self._newest - self._fed)
        return True

    async def _let_go(self) -> None:
        number, self._leased_by = self._leased_by, None
        if number is not None:
            await self._pool.execute(_SQL["release_sink"], self._sink.name, number)

    async def _shut(self) -> None:
        self._is_open = False
        await self._sink.close()

    def _tell_of_missed(self, first: Event) -> None:
        """Numbers have no gaps, so a gap here was dropped with its partition before it was fed."""
        missed = first.event_no - self._fed - 1
        if missed and self._fed:
            metrics.missed.labels(self._sink.name).inc(missed)
            _log.error("sink_missed_events", sink=self._sink.name, after_event=self._fed, count=missed)

    def _count(self, events: list[Event], known: int) -> None:
        name = self._sink.name
        metrics.events.labels(name, "stored").inc(len(events) - known)
        metrics.events.labels(name, "known").inc(known)
        lag_s = self._clock().timestamp() - min(event.occurred_ms for event in events) / 1000
        metrics.lag_seconds.labels(name).observe(max(0.0, lag_s))


def _pause_after(counts: FeedCounts) -> float:
    if not counts.ours:
        return STANDBY_S
    return 0.0 if counts.events and counts.behind else IDLE_S
