"""How many grabs a partner may send, where that is limited."""

from typing import Final, NamedTuple

SECOND_US: Final = 1_000_000


class Rate(NamedTuple):
    """A partner's rate of grabs, over all API processes together.

    In any t seconds at most `per_second · t + burst_count` new grabs are decided.
    """

    per_second: int
    burst_count: int
    """Grabs that may come at once after a pause; at least 1."""

    @property
    def interval_us(self) -> float:
        """What one grab uses of the rate."""
        return SECOND_US / self.per_second

    @property
    def burst_us(self) -> float:
        """How far ahead of the clock the rate may be used."""
        return self.interval_us * self.burst_count
