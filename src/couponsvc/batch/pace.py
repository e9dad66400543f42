"""What this process knows of how far a limited partner has used its rate.

The gate decides (`grab_batch.lua`): one rate over all processes, by one clock. With every decision
it says how far the rate is used; from that on no more than the rate itself can come free, so what is
known here never falls behind what the gate would allow, and a grab that is refused here would have
been refused there. Only proven grabs use it up: a stranger cannot.
"""

from time import perf_counter
from typing import Final

from couponsvc.values.rate import SECOND_US, Rate


class Pace:
    """A limited partner in one process. Times are those of `time.perf_counter`, in seconds."""

    __slots__ = ("_burst_s", "_interval_s", "_used_until_s", "partner_no", "rate")

    def __init__(self, partner_no: int, rate: Rate) -> None:
        self.partner_no: Final = partner_no
        self.rate: Final = rate
        self._interval_s: Final = rate.interval_us / SECOND_US
        self._burst_s: Final = rate.burst_us / SECOND_US
        self._used_until_s = 0.0

    def room_count(self, now_s: float) -> int:
        """How many grabs the gate could allow now, at most; below 1 none."""
        ahead_s = max(self._used_until_s - now_s, 0.0)
        return int((self._burst_s - ahead_s) / self._interval_s + _ROUNDING)

    def wait_s(self, now_s: float, wanted_count: int = 1) -> float:
        """How long until the gate could allow so many grabs; 0 where it could now."""
        wanted_s = min(wanted_count * self._interval_s, self._burst_s)
        return max(self._used_until_s + wanted_s - self._burst_s - now_s, 0.0)

    def use(self) -> None:
        """Note that a grab is on its way to the gate."""
        self._used_until_s = max(self._used_until_s, perf_counter()) + self._interval_s

    def told(self, ahead_us: int, sent_s: float) -> None:
        """Note what the gate said of a batch that was sent at `sent_s`."""
        self._used_until_s = sent_s + ahead_us / SECOND_US


_ROUNDING: Final = 1e-3
"""Of a grab: sums of fractions end just below a whole number."""
