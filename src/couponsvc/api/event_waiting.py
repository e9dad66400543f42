"""Waiting for events: one LISTEN connection per process wakes whoever waits for a partner's.

The relay notifies channel `couponsvc_events` with the numbers of the partners it has numbered
events for. A notification only says where to look: whoever waits takes a seat first and looks
afterwards, so that nothing falls between. Notifications can be lost (a cut connection, a pooler
in between that does not know LISTEN), so a new connection wakes everybody, and every other second
the new events themselves are looked at for whose they are. Losses cost time, never an event.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import asyncpg
import structlog

from couponsvc import limits
from couponsvc.api.problems import ProblemAnswer
from couponsvc.support import metrics
from couponsvc.support.ending import end_tasks
from couponsvc.support.postgres import server_settings
from couponsvc.support.sql import Queries

log = structlog.get_logger("events")

CHANNEL: Final = "couponsvc_events"
NAME: Final = "couponsvc events"
"""Of the connection, in pg_stat_activity."""
LOOK_EVERY_S: Final = 2.0
"""How late a lost notification is noticed; one or two short queries, however many wait. They also show
that the connection still leads somewhere."""
LOOK_MAX_COUNT: Final = 5_000
"""New events that are looked at for their partners; where there are more, everybody is woken."""
KEY_CHECK_EVERY_S: Final = 0.5
"""A revoked key stops within five seconds, streams included; four of them pass until it is known here."""
LOOK_TIMEOUT_S: Final = 2.0
RECONNECT_EVERY_S: Final = 0.5
READINGS_MAX_COUNT: Final = 4
"""Pages read at once when many are woken: half of the pool is left to look-ups and operators."""

_AWAY: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_WAITING: Final = metrics.gauge("couponsvc_feed_waiting", "Readers that wait for events, streams included.")
_queries: Final = Queries("couponsvc.api", "events")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Seat:
    """One reader's place. `wait`, then look; a ring in between is kept for the next `wait`."""

    __slots__ = ("_rung", "key_id", "left")

    def __init__(self, key_id: str) -> None:
        self._rung: Final = asyncio.Event()
        self.key_id: Final = key_id
        self.left = False
        """Whether the client has gone."""

    def ring(self) -> None:
        """Say that it is worth looking again."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until rung; whether it was, within the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        rung = self._rung.is_set()
        self._rung.clear()
        return rung


class EventWaits:
    """The seats of one process, and who rings them.

    Args:
        dsn: Of Postgres, for a connection of its own; a pooler must not stand in between.
        key_lives: Whether a key, by its id, may still be used.
        look_every_s: How often the counter of events is looked at.
    """

    def __init__(
        self, dsn: str, key_lives: Callable[[str], bool], *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self._dsn: Final = dsn
        self._key_lives: Final = key_lives
        self._look_every_s: Final = look_every_s
        self._seats: Final[defaultdict[int, set[Seat]]] = defaultdict(set)
        self._count = 0
        self.reading: Final = asyncio.Semaphore(READINGS_MAX_COUNT)
        """To be held while a page is read."""
        self.ended = False
        """Whether the process is about to stop: readers answer what there is and go."""
        self.newest_event_no = 0
        """Of all partners, as last seen; every number up to it was committed by then."""

    @contextlib.asynccontextmanager
    async def seat(self, partner_no: int, key_id: str, receive: Receive) -> AsyncIterator[Seat]:
        """A place among those who wait, until the block ends.

        Args:
            partner_no: Whose events.
            key_id: Who asks; the seat is rung when the key ends.
            receive: The request's; the seat is rung when it tells that the client has gone.

        Raises:
            ProblemAnswer: `rate_limited` or `overloaded`; nobody waits beyond the bounds.
        """
        if self._count >= limits.FEED_WAITERS_MAX_COUNT:
            raise ProblemAnswer("overloaded", "Too many readers wait for events here. Ask again later.")
        if len(self._seats.get(partner_no, ())) >= limits.FEED_WAITERS_PER_PARTNER_MAX_COUNT:
            most = limits.FEED_WAITERS_PER_PARTNER_MAX_COUNT
            raise ProblemAnswer(
                "rate_limited", f"{most} readers of this partner wait already: one that hands on is enough."
            )
        seat = Seat(key_id)
        self._seats[partner_no].add(seat)
        self._count += 1
        _WAITING.inc()
        watching = asyncio.create_task(_until_gone(receive, seat), name="client of a feed")
        try:
            yield seat
        finally:
            watching.cancel()
            _WAITING.dec()
            self._count -= 1
            self._seats[partner_no].discard(seat)
            if not self._seats[partner_no]:
                del self._seats[partner_no]

    @property
    def count(self) -> int:
        """How many wait."""
        return self._count

    def go_on(self, seat: Seat) -> bool:
        """Whether there is still somebody to tell, who may hear it, and time to do so."""
        return not (seat.left or self.ended) and self._key_lives(seat.key_id)

    def end(self) -> None:
        """Let nobody wait any longer: the process is about to stop."""
        self.ended = True
        self._ring_everybody()

    async def run(self) -> None:
        """Listen, and watch over keys, until cancelled; through every loss of Postgres."""
        both = [
            asyncio.create_task(self._watch_keys(), name="keys of feeds"),
            asyncio.create_task(self._listen(), name="news of events"),
        ]
        try:
            await asyncio.gather(*both)
        finally:
            await end_tasks(*both)

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(KEY_CHECK_EVERY_S)
            for seats in self._seats.values():
                for seat in seats:
                    if not self._key_lives(seat.key_id):
                        seat.ring()

    async def _listen(self) -> None:
        lost = False
        while True:
            try:
                connection = await asyncpg.connect(
                    self._dsn,
                    timeout=LOOK_TIMEOUT_S,
                    command_timeout=LOOK_TIMEOUT_S,
                    server_settings={
                        **server_settings(limits.STATEMENT_TIMEOUT_MS),
                        "application_name": NAME,
                    },
                )
                try:
                    await connection.add_listener(CHANNEL, self._hear)
                    if lost:
                        log.info("events are heard again")
                    lost = False
                    self._ring_everybody()  # what was said meanwhile was not heard
                    await self._look_until_lost(connection)
                finally:
                    connection.terminate()
            except _AWAY as error:
                if not lost:
                    log.warning("events are not heard; waits last longer", error=type(error).__name__)
                lost = True
                await asyncio.sleep(RECONNECT_EVERY_S)

    async def _look_until_lost(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _: closed.set())
        while not closed.is_set():
            newest: int = await connection.fetchval(_queries["newest_event_no"])
            if newest - self.newest_event_no > LOOK_MAX_COUNT:
                self._ring_everybody()
            elif newest > self.newest_event_no:
                rows = await connection.fetch(_queries["partners_between"], self.newest_event_no, newest)
                self._ring(row["partner_no"] for row in rows)
            self.newest_event_no = newest
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), self._look_every_s)

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """A notification: partner_nos with commas between; nothing: too many to name."""
        numbers = str(payload).split(",") if payload else []
        if not numbers or not all(number.isascii() and number.isdigit() for number in numbers):
            self._ring_everybody()
            return
        self._ring(map(int, numbers))

    def _ring(self, partner_nos: Iterable[int]) -> None:
        for partner_no in partner_nos:
            for seat in self._seats.get(partner_no, ()):
                seat.ring()

    def _ring_everybody(self) -> None:
        self._ring(self._seats)


async def _until_gone(receive: Receive, seat: Seat) -> None:
    """A client that goes away gives its seat back at once, not when its wait would end."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        seat.left = True
        seat.ring()
