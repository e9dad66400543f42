"""Takes rows out of the outbox and numbers what partners hear of.

Authority: the one row of `event_counter`. Its lock is held from reading the newest number to the
commit, so numbers appear in order and without gaps, and whoever has seen a number has seen every
lower one. On a crash the transaction is as if it had never been: rows are still in the outbox,
numbers are not used. Several relays may try at once; one has the lock, the others do nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from couponsvc import limits
from couponsvc.outbox import metrics
from couponsvc.outbox.windows import OutboxRow, Told, Turn, Window, plan_turn
from couponsvc.support import logs
from couponsvc.support.kill_points import kill_point
from couponsvc.support.sql import Queries
from couponsvc.values.event import EventType

WINDOWS_EVERY: Final = timedelta(seconds=1)
"""How often windows are looked at: one pass over all drops, and how late an opening is told at most."""
MISFIT_EVERY: Final = timedelta(seconds=10)
"""How often a drop whose rows do not fit is tried again, and complained of."""
NEWS_MAX_CHARS: Final = 7_000
"""A notification holds 8,000 bytes; a longer list of partners becomes an empty one: somebody."""
KNOWN_TYPES: Final = [kind.value for kind in EventType]

_BEFORE_NUMBERED: Final = kill_point("relay.before_numbered")
_AFTER_NUMBERED: Final = kill_point("relay.after_numbered")

Connection = asyncpg.pool.PoolConnectionProxy

_queries = Queries("couponsvc.outbox", "sequencing")
_log = logs.get("couponsvc.outbox.sequencing")
_ROW_COLUMNS: Final = len(OutboxRow._fields)


class SequenceCounts(NamedTuple):
    """What a turn did."""

    outbox_rows: int = 0
    events: int = 0
    deliveries: int = 0


class _Misfit(Exception):
    """Vouchers that a row tells of are not there; the transaction is given up."""

    def __init__(self, drop_no: int, reason: str) -> None:
        super().__init__(reason)
        self.drop_no = drop_no


class Sequencer:
    """Numbers events. One per relay process."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool: Final = pool
        self._left_alone: Final[dict[int, datetime]] = {}
        """Drops whose rows do not fit, and since when."""
        self._looked_at: datetime | None = None

    async def run_once(self, now: datetime) -> SequenceCounts:
        """Number a turn's outbox rows; zeros: there are none, or another relay is at it.

        Args:
            now: The moment, UTC: deliveries become due then, windows are open or ended by it.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked. Whether the turn
                was done shows the next one; nothing is lost or told twice.
        """
        self._forgive(now)
        look = await self._windows_are_due(now)
        left_alone = list(self._left_alone)
        if not look and not await self._pool.fetchval(_queries["has_work"], KNOWN_TYPES, left_alone):
            return SequenceCounts()
        while True:
            try:
                return await self._turn(now, look=look)
            except _Misfit as misfit:
                self._leave_alone(misfit.drop_no, str(misfit), now)

    async def _windows_are_due(self, now: datetime) -> bool:
        """Whether the clock has something to tell; looks once a second, and again while there is more."""
        if self._looked_at is not None and abs(now - self._looked_at) < WINDOWS_EVERY:
            return False
        metrics.outbox_unknown_rows.set(await self._pool.fetchval(_queries["count_unknown"], KNOWN_TYPES))
        if await self._pool.fetch(_queries["windows_due"], now, list(self._left_alone), 1):
            return True
        self._looked_at = now
        return False

    async def _turn(self, now: datetime, *, look: bool) -> SequenceCounts:
        async with self._pool.acquire() as connection, connection.transaction():
            newest = await connection.fetchval(_queries["lock_counter"])
            if newest is None:
                return SequenceCounts()
            turn = await self._plan(connection, now, look=look)
            counts = await self._write(connection, turn, newest, now)
            _BEFORE_NUMBERED()
        _AFTER_NUMBERED()
        for drop_no, reason in turn.misfits.items():
            self._leave_alone(drop_no, reason, now)
        return counts

    async def _plan(self, connection: "Connection[asyncpg.Record]", now: datetime, *, look: bool) -> Turn:
        left_alone = list(self._left_alone)
        found = await connection.fetch(
            _queries["take_rows"], KNOWN_TYPES, left_alone, limits.SEQUENCE_TURN_MAX_COUNT
        )
        told = {row["drop_no"]: _told(row) for row in found if row["drop_no"] is not None}
        needed = {
            row["drop_no"]
            for row in found
            if row["drop_no"] is not None and (row["first_seq"] is None or not row["opened_told"])
        }
        windows = await connection.fetch(_queries["windows_of"], list(needed)) if needed else []
        if look:
            most = limits.SEQUENCE_TURN_MAX_COUNT
            due = await connection.fetch(_queries["windows_due"], now, left_alone, most)
            windows += due
            if len(due) < most:
                self._looked_at = now
        told |= {row["drop_no"]: _told(row) for row in windows}
        return plan_turn(
            [OutboxRow(*row[:_ROW_COLUMNS]) for row in found],
            told,
            {row["drop_no"]: Window(*(row[name] for name in Window._fields)) for row in windows},
            now,
        )

    async def _write(
        self, connection: "Connection[asyncpg.Record]", turn: Turn, newest: int, now: datetime
    ) -> SequenceCounts:
        if not turn.tellings:
            return SequenceCounts()
        tellings = turn.tellings
        kinds = [telling.kind for telling in tellings]
        columns: Sequence[Sequence[object]] = list(zip(*tellings, strict=True))[1:]
        row = await connection.fetchrow(
            _queries["fan_out"],
            newest,
            now,
            [kind.value for kind in kinds],
            [kind.public for kind in kinds],
            *columns,
        )
        assert row is not None, "fan_out answers with one row"  # noqa: S101
        for telling, owned_count in zip(tellings, row["owned_counts"], strict=True):
            if telling.first_seq is not None and telling.last_seq is not None:
                told_count = telling.last_seq - telling.first_seq + 1
                if owned_count != told_count:
                    reason = f"{owned_count} of {told_count} vouchers from {telling.first_seq} stand"
                    assert telling.drop_no is not None, "vouchers are of a drop"  # noqa: S101
                    raise _Misfit(telling.drop_no, reason)
        drop_nos = {telling.drop_no for telling in tellings if telling.drop_no is not None}
        told = [(drop_no, turn.told[drop_no]) for drop_no in sorted(drop_nos)]
        await connection.execute(
            _queries["advance_tellings"],
            [drop_no for drop_no, _ in told],
            [t.told_seq for _, t in told],
            [t.opened for _, t in told],
            [t.ended for _, t in told],
        )
        await connection.execute(_queries["advance_counter"], newest + row["events"])
        await connection.execute(_queries["remove_rows"], turn.outbox_nos)
        if row["events"]:
            news = row["partners"]
            await connection.execute(_queries["announce"], news if len(news) <= NEWS_MAX_CHARS else "")
        return SequenceCounts(len(turn.outbox_nos), row["events"], row["deliveries"])

    def _leave_alone(self, drop_no: int, reason: str, now: datetime) -> None:
        self._left_alone[drop_no] = now
        metrics.outbox_misfit_drops.set(len(self._left_alone))
        _log.error("outbox_does_not_fit", drop_no=drop_no, reason=reason)

    def _forgive(self, now: datetime) -> None:
        for drop_no, since in list(self._left_alone.items()):
            if abs(now - since) >= MISFIT_EVERY:
                del self._left_alone[drop_no]
        metrics.outbox_misfit_drops.set(len(self._left_alone))


def _told(row: asyncpg.Record) -> Told:
    return Told(row["told_seq"], row["opened_told"], row["ended_told"])
