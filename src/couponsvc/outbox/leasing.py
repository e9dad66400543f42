"""Who delivers what: a relay's number, and the deliveries it leases under that number.

A number is held by a session lock in Postgres, on a connection of its own. When the relay dies, its
session ends, and the leases of a number that nobody holds are free at once. LEASE_S is for a relay
that lives but does not get on (paused, or cut off without a word).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic
from typing import Final, NamedTuple, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from couponsvc import limits
from couponsvc.outbox import metrics
from couponsvc.outbox.retries import FAILING_FROM_COUNT
from couponsvc.support import logs
from couponsvc.support.postgres import server_settings
from couponsvc.support.service_loop import AWAY
from couponsvc.support.sql import Queries

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

RELAY_LOCKS: Final = 0x63737279
"""First half of a relay's advisory lock ("csry"); the second is its number."""
EVENTS_CHANNEL: Final = "couponsvc_events"
"""Postgres says here that events were numbered."""
RECONNECT_GRACE_S: Final = 2.0
"""When Postgres has ended every session, other relays get this long to take their numbers again."""
PROBES_MAX_COUNT: Final = limits.DELIVERIES_IN_FLIGHT_MAX_COUNT // 4
"""However many endpoints fail at once, three quarters of a relay's room are for those that do not."""
CONNECTION_TIMEOUT_S: Final = limits.LOCK_TIMEOUT_MS / 1000
CLOSE_TIMEOUT_S: Final = 1.0

_queries: Final = Queries("couponsvc.outbox", "leasing")
_log = logs.get("couponsvc.outbox.leasing")


class RelayNumber:
    """This process among the relays. Also listens for new events on the same connection."""

    def __init__(self, dsn: str, on_events: Callable[[], None]) -> None:
        """`on_events` is called whenever events were numbered, by whichever relay."""
        self._dsn: Final = dsn
        self._on_events: Final = on_events
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._number = 0
        self._may_free_at_s = 0.0

    @property
    def number(self) -> int | None:
        """The number, or None while it is not held."""
        held = self._connection is not None and not self._connection.is_closed()
        return self._number if held else None

    async def hold(self) -> int:
        """Take a number unless one is held; after a loss the same again, if Postgres has let go of it.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
        """
        if (number := self.number) is not None:
            return number
        connection = await asyncpg.connect(
            self._dsn,
            timeout=CONNECTION_TIMEOUT_S,
            command_timeout=limits.STATEMENT_TIMEOUT_MS / 1000,
            server_settings=server_settings(limits.STATEMENT_TIMEOUT_MS),
        )
        try:
            if self._number:
                self._may_free_at_s = monotonic() + RECONNECT_GRACE_S
            else:
                self._number = await connection.fetchval(_queries["next_number"])
            while not await connection.fetchval(_queries["lock_number"], RELAY_LOCKS, self._number):
                self._number = await connection.fetchval(_queries["next_number"])
            await connection.add_listener(EVENTS_CHANNEL, lambda *_: self._on_events())
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        _log.info("relay number", number=self._number)
        return self._number

    async def free_leases(self, now: datetime) -> int:
        """Take deliveries from relays that are dead or late; how many. Also proves that Postgres answers.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away;
                the number is held no more.
        """
        if self._connection is None or monotonic() < self._may_free_at_s:
            return 0
        try:
            freed: int = await self._connection.fetchval(_queries["free_leases"], RELAY_LOCKS, now)
        except AWAY:
            self._connection.terminate()  # nothing can be known of the lock; `hold` takes it again
            raise
        if freed:
            metrics.leases_freed.inc(freed)
            _log.warning("leases freed", deliveries=freed)
        return freed

    async def close(self) -> None:
        """Let go of the number."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*AWAY):
                await connection.close(timeout=CLOSE_TIMEOUT_S)


class Lease(NamedTuple):
    """One delivery that is ours to make until `leased_until`, and where it goes."""

    subscription_no: int
    event_no: int
    attempt_count: int
    """Attempts before this one."""
    queued_at: datetime
    probe: bool
    """The endpoint fails, and this delivery asks whether it still does."""
    troubled: bool
    """Its newest attempts failed; how many of them, is in Postgres."""
    partner_no: int
    url: str
    sealed_secret: bytes
    previous_sealed_secret: bytes | None
    previous_until: datetime | None
    leased_by: int
    leased_until: datetime


async def lease_due(
    pool: Pool,
    relay_no: int,
    now: datetime,
    *,
    room: int,
    rooms: Mapping[int, int],
    room_elsewhere: int,
    probe_room: int,
) -> list[Lease]:
    """Lease what is due and can start now, in order of event_no.

    Args:
        pool: to Postgres.
        relay_no: whose leases they become.
        now: what is due by then is due.
        room: at most so many.
        rooms: and at most so many for these subscriptions.
        room_elsewhere: and so many for any other one.
        probe_room: at most so many probes of failing endpoints.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away; what it
            leased unheard is free again after LEASE_S.
    """
    until = now + timedelta(seconds=limits.LEASE_S)
    rows = await pool.fetch(
        _queries["lease_due"],
        relay_no,
        now,
        until,
        room,
        list(rooms),
        list(rooms.values()),
        room_elsewhere,
        FAILING_FROM_COUNT,
        probe_room,
    )
    return [Lease._make((*row, relay_no, until)) for row in rows]


async def give_back(pool: Pool, leases: Sequence[Lease]) -> None:
    """End leases of deliveries that were not attempted, or given up before their outcome was known.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away; they are
            free when our session ends, or after LEASE_S.
    """
    for relay_no in {lease.leased_by for lease in leases}:
        own = [lease for lease in leases if lease.leased_by == relay_no]
        await pool.execute(
            _queries["give_back"],
            relay_no,
            [lease.subscription_no for lease in own],
            [lease.event_no for lease in own],
        )
