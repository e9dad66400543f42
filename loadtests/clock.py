"""The run's clock: monotonic, in the deployment's time, so that "10:00" is the deployment's 10:00.

The clock that opens drops is the gate's own (Redis' TIME), which no header shows. But every
voucher says when it was granted by that clock, to the millisecond, and that moment lies between
our sending and our receiving. So a few grabs from a drop that is open anyway (the clock drop,
which is no part of what is judged) bound the offset between the two clocks from both sides, as
one exchange of NTP does; the intersection of the bounds is the offset, half its width the error.
"""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from loadtests.records import Clock

ASSUMED: Final = Clock(offset_ms=0.0, tolerance_ms=1_000.0)
"""Where nothing can be measured: machines that keep their time by NTP are well within it."""
SLACK_MS: Final = 2.0
"""Clocks drift apart while a run lasts: 20 parts per million over a minute, with room."""


class Exchange(NamedTuple):
    """One voucher issued between two moments of our clock, at a moment of the deployment's."""

    sent_ms: float
    issued_ms: float
    answered_ms: float


def measure(exchanges: Sequence[Exchange]) -> Clock:
    """The offset of the deployment's clock; ASSUMED where there is nothing to go by.

    Where a clock was set in between, the bounds contradict each other; then everything between
    the outermost of them is possible.
    """
    if not exchanges:
        return ASSUMED
    lows = [exchange.issued_ms - exchange.answered_ms for exchange in exchanges]
    highs = [exchange.issued_ms + 1.0 - exchange.sent_ms for exchange in exchanges]
    low, high = max(lows), min(highs)
    if low > high:
        low, high = min(lows), max(highs)
    return Clock(offset_ms=(low + high) / 2, tolerance_ms=(high - low) / 2 + SLACK_MS)


class RunClock:
    """Wall-clock milliseconds that never jump, and seconds since the opening of the run."""

    def __init__(self) -> None:
        self._zero_ms: Final = time.time() * 1_000 - time.perf_counter() * 1_000
        self._opens_ms = 0.0

    def wall_ms(self) -> float:
        """This machine's Unix time in milliseconds, as it was when the run began plus what passed."""
        return self._zero_ms + time.perf_counter() * 1_000

    def aim(self, opens_ms: float, offset_ms: float) -> None:
        """Set the opening, given in the deployment's time."""
        self._opens_ms = opens_ms - offset_ms

    def now_s(self) -> float:
        """Seconds since the opening; negative before it."""
        return (self.wall_ms() - self._opens_ms) / 1_000

    def at_ms(self, run_s: float) -> float:
        """The wall clock at a moment of the run."""
        return self._opens_ms + run_s * 1_000
