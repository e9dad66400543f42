"""The relay: outbox → events → partners. Any number of them may run.

Who is authoritative: Postgres. A relay keeps nothing that is not there; whatever dies in between, at
whatever point, leaves rows in the outbox, events in order, and deliveries in the queue, and the next
relay goes on with them. What was sent and not noted is sent again: the same id, the same bytes.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Final, NamedTuple, Self

from couponsvc import limits
from couponsvc.outbox import metrics, settling
from couponsvc.outbox.attempting import Attempter
from couponsvc.outbox.delivering import Deliverer, DeliveryCounts
from couponsvc.outbox.endpoints import SecretBook
from couponsvc.outbox.leasing import Pool, RelayNumber
from couponsvc.outbox.ledger_clock import LOOK_EVERY_S, LedgerClock
from couponsvc.outbox.partitions import make_partitions
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.outbox.settling import Remainder
from couponsvc.outbox.sinks import configured_sinks, run_sinks
from couponsvc.outbox.tending import TEND_EVERY_S, Tender
from couponsvc.settings import Settings
from couponsvc.support.guarded_http import GuardedClient
from couponsvc.support.postgres import open_pool
from couponsvc.support.public_addresses import AddressPolicy
from couponsvc.support.sealing import MasterKey
from couponsvc.support.service_loop import repeat

POSTGRES_CONNECTIONS: Final = 6
"""Sequencing, leasing, reading, settling, and two for what is rare; the number has one of its own."""
LOOK_ROUND_EVERY_S: Final = 1.0
"""How often a relay looks whether another one has died."""
OBSERVE_EVERY_S: Final = 15.0
"""Counting reads the whole queue: a tenth of a second where a million are parked."""
STOP_GRACE_S: Final = 3.0
"""What deliveries under way may still take when the relay is told to stop."""
CLOSE_TIMEOUT_S: Final = 1.0
CLOCK_LOOKS_AT_FIRST_COUNT: Final = 3
"""At the ledger's clock before anything is done by it: the first look of a connection is a slow one."""


class RelayCounts(NamedTuple):
    """What `run_once` did."""

    sequenced: int = 0
    """Outbox rows numbered."""
    events: int = 0
    queued: int = 0
    """Deliveries that became due by it."""
    delivered: int = 0
    failed: int = 0
    parked: int = 0
    """Given up: failed ones, and those that waited too long."""
    freed: int = 0
    """Taken over from relays that are dead or late."""


class Relay:
    """Tells partners what was committed. `open`, then `run` or `run_once`, then `close`."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        clock: Callable[[], datetime] | None,
        jitter: Callable[[], float],
    ) -> None:
        """Put a relay together; `open` does it from settings."""
        self._settings: Final = settings
        self._pool: Final = pool
        self._ledger_clock: Final = LedgerClock(pool)
        self._clock: Final = clock or self._ledger_clock
        self._reader: Final = EventReader(pool)
        self._sequencer: Final = Sequencer(pool)
        self._client: Final = GuardedClient(
            AddressPolicy(allow_private=settings.webhook_allow_private),
            timeout_s=limits.WEBHOOK_TIMEOUT_S,
            answer_max_bytes=limits.WEBHOOK_ANSWER_MAX_BYTES,
        )
        self._wake: Final = asyncio.Event()
        """Something may be due."""
        self._remainder: Final = Remainder()
        self._number: Final = RelayNumber(settings.postgres_dsn.get_secret_value(), self._wake.set)
        self._deliverer: Final = Deliverer(
            pool=pool,
            number=self._number,
            wake=self._wake,
            reader=self._reader,
            attempter=Attempter(
                self._client,
                SecretBook(MasterKey.from_base64(settings.master_key.get_secret_value())),
                self._clock,
                jitter,
            ),
            clock=self._clock,
            remainder=self._remainder,
        )
        self._tender: Final = Tender(
            pool,
            self._clock,
            self._remainder,
            self._wake.set,
            events_kept_days=settings.events_kept_days,
            attempts_kept_days=settings.attempts_kept_days,
        )

    @classmethod
    async def open(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], datetime] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> Self:
        """Connect to Postgres, make the partitions that are needed, take a number.

        Args:
            settings: of the process.
            clock: aware UTC; decides what is due, leased and given up. None: Postgres' clock.
            jitter: in [0, 1), drawn for every retry.

        Raises:
            OSError, asyncpg.PostgresError: Postgres cannot be reached.
            couponsvc.support.sealing.BadMasterKey: the master key is malformed.
            couponsvc.outbox.sinks.sink.ExtraMissing: a broker is configured whose client is not installed.
        """
        configured_sinks(settings)
        dsn = settings.postgres_dsn.get_secret_value()
        pool = await open_pool(dsn, max_size=POSTGRES_CONNECTIONS, reset_sessions=False)
        try:
            relay = cls(settings, pool, clock, jitter)
            for _ in range(CLOCK_LOOKS_AT_FIRST_COUNT):
                await relay._ledger_clock.follow()
            await make_partitions(pool, relay._clock())
            await relay._number.hold()
        except BaseException:
            pool.terminate()
            raise
        return relay

    async def close(self) -> None:
        """Let go of the number, close every connection."""
        await self._client.close()
        await self._number.close()
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            self._pool.terminate()

    async def run_once(self) -> RelayCounts:
        """Free what dead relays hold, number everything, deliver everything that is due, to its end.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
        """
        await self._ledger_clock.follow()
        await self._number.hold()
        freed = await self._number.free_leases(self._clock())
        parked = await self._tender.run_once()
        rows, events, queued = 0, 0, 0
        while (counts := await self._sequencer.run_once(self._clock())).outbox_rows:
            rows, events, queued = (
                rows + counts.outbox_rows,
                events + counts.events,
                queued + counts.deliveries,
            )
        done = await self._deliverer.run_once()
        while self._remainder.wake.is_set():
            parked += await self._tender.run_once()
            done = DeliveryCounts(*map(sum, zip(done, await self._deliverer.run_once(), strict=True)))
        return RelayCounts(rows, events, queued, done.delivered, done.failed, done.parked + parked, freed)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; rides out the absence of Postgres, of receivers and of brokers.

        What is under way then may take STOP_GRACE_S more; the leases of the rest are given back.
        """
        await asyncio.gather(
            self._repeat("clock", self._follow_clock, stop),
            self._repeat("number", self._look_round, stop),
            self._repeat("sequence", self._sequence, stop),
            self._repeat("observe", self._observe, stop),
            self._repeat("sinks", partial(self._feed_sinks, stop), stop),
            self._tender.run(stop),
            self._deliverer.run(stop, STOP_GRACE_S),
        )

    async def _repeat(self, name: str, turn: Callable[[], Awaitable[float]], stop: asyncio.Event) -> None:
        await repeat(name, turn, stop, on_error=metrics.task_failures.labels(name).inc)

    async def _follow_clock(self) -> float:
        await self._ledger_clock.follow()
        return LOOK_EVERY_S

    async def _look_round(self) -> float:
        """Keep the number; take over from relays that are dead or late."""
        await self._number.hold()
        if await self._number.free_leases(self._clock()):
            self._wake.set()
        return LOOK_ROUND_EVERY_S

    async def _sequence(self) -> float:
        began_s = monotonic()
        counts = await self._sequencer.run_once(self._clock())
        if counts.deliveries:
            self._wake.set()
        if counts.outbox_rows >= limits.SEQUENCE_TURN_MAX_COUNT:
            return 0.0
        rush = counts.outbox_rows >= limits.SEQUENCE_RUSH_COUNT
        every_ms = limits.SEQUENCE_RUSH_EVERY_MS if rush else limits.SEQUENCE_EVERY_MS
        return every_ms / 1000 - (monotonic() - began_s)

    async def _observe(self) -> float:
        await settling.observe(self._pool, self._clock())
        return OBSERVE_EVERY_S

    async def _feed_sinks(self, stop: asyncio.Event) -> float:
        await run_sinks(
            self._settings, self._pool, self._reader, lambda: self._number.number, self._clock, stop
        )
        return TEND_EVERY_S  # there is none, or it is time to stop
