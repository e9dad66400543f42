"""The clock of relays: Postgres', carried on between two looks at it by the monotonic clock.

What is due, leased, held and signed is decided by moments that all relays compare, so they must come
from one clock; machines' own differ, and somebody sets them. Here a look at Postgres' clock gives
by how much it is ahead of our monotonic clock, and is wrong by half its round trip at most; with time
it becomes less certain, because the two do not run equally fast. The most certain look counts. One that
contradicts it counts at once: Postgres' clock was set, another machine is Postgres now, or this one
slept. So relays agree to within a round trip, whatever becomes of their machines' wall clocks.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Final, NamedTuple

from couponsvc.outbox import metrics
from couponsvc.outbox.leasing import Pool
from couponsvc.support import logs
from couponsvc.support.service_loop import AWAY
from couponsvc.support.sql import Queries

LOOK_EVERY_S: Final = 1.0
DRIFT: Final = 0.0002
"""How much faster or slower one clock runs than another: two cheap quartzes at 100 ppm each."""
STAND_STILL_MAX_S: Final = 1.0
"""A correction backwards up to this is waited out, so that what became due stays due; a greater one is
made at once: all other relays are back there, too."""
DIFFERENCE_TOLD_S: Final = 1.0
"""Clocks that are kept by NTP differ by milliseconds; a second says that one of them is not."""

_queries: Final = Queries("couponsvc.outbox", "clock")
_log = logs.get("couponsvc.outbox.ledger_clock")


def utc_now() -> datetime:
    """This machine's wall clock."""
    return datetime.now(UTC)


class _Look(NamedTuple):
    offset_s: float
    """Postgres' moment since 1970 less our monotonic one."""
    error_s: float
    """How much the offset may be wrong by, either way, when it was taken."""
    taken_s: float

    def error_at(self, now_s: float) -> float:
        """How much it may be wrong by now."""
        return self.error_s + DRIFT * (now_s - self.taken_s)


class LedgerClock:
    """Gives the moment by Postgres' clock, aware UTC, at no cost. `follow` it once a second.

    Until the first look it gives the wall clock's moment.

    Args:
        pool: to Postgres.
        wall: this machine's wall clock, which the ledger's is compared with.
        steady_s: a clock that nobody can set, in seconds.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        wall: Callable[[], datetime] = utc_now,
        steady_s: Callable[[], float] = monotonic,
    ) -> None:
        self._pool: Final = pool
        self._wall: Final = wall
        self._steady_s: Final = steady_s
        now_s = steady_s()
        self._kept = _Look(wall().timestamp() - now_s, float("inf"), now_s)
        self._latest_s = 0.0
        """The last moment given."""
        self._told = False

    def __call__(self) -> datetime:
        """The moment: never before the last one given, unless by more than STAND_STILL_MAX_S."""
        now_s = self._kept.offset_s + self._steady_s()
        if not 0 < self._latest_s - now_s <= STAND_STILL_MAX_S:
            self._latest_s = now_s
        return datetime.fromtimestamp(self._latest_s, UTC)

    async def follow(self) -> None:
        """Look at Postgres' clock; where Postgres is away, go on without."""
        try:
            async with self._pool.acquire() as connection:
                asked_s = self._steady_s()
                moment = await connection.fetchval(_queries["look"])
                heard_s = self._steady_s()
        except AWAY:
            return
        middle_s, error_s = (asked_s + heard_s) / 2, (heard_s - asked_s) / 2
        self._learn(_Look(moment.timestamp() - middle_s, error_s, heard_s))
        self._compare()

    def _learn(self, look: _Look) -> None:
        """Keep a look that is more certain than the one kept, or contradicts it."""
        kept, kept_error_s = self._kept, self._kept.error_at(look.taken_s)
        apart_s = look.offset_s - kept.offset_s
        contradicts = abs(apart_s) > look.error_s + kept_error_s
        if contradicts or look.error_s <= kept_error_s:
            self._kept = look
        if contradicts and abs(apart_s) > DIFFERENCE_TOLD_S:
            _log.warning("the clock of Postgres was set, or this machine slept", seconds=round(apart_s, 3))

    def _compare(self) -> None:
        """Show how far this machine's wall clock is off, and tell it once."""
        now_s = self._steady_s()
        difference_s = self._wall().timestamp() - now_s - self._kept.offset_s
        metrics.clock_difference_seconds.set(difference_s)
        certain_s = abs(difference_s) - self._kept.error_at(now_s)
        if certain_s > DIFFERENCE_TOLD_S and not self._told:
            _log.warning(
                "this machine's wall clock is not Postgres'; relays go by the latter",
                ahead_s=round(difference_s, 3),
            )
            self._told = True
        elif certain_s < DIFFERENCE_TOLD_S / 2:
            self._told = False
