"""Percentiles of millions of values in a few kilobytes: counts in bins one per cent wide."""

import math
from typing import Final

_GROWTH: Final = math.log(1.01)
"""A bin ends one per cent above where it begins, so a percentile is at most that far too high."""
_SMALLEST_MS: Final = 0.01
_log: Final = math.log


class Histogram:
    """Counts of durations in milliseconds."""

    __slots__ = ("bins", "count", "highest_ms")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.count = 0
        self.highest_ms = 0.0

    def add(self, duration_ms: float) -> None:
        """Count one."""
        duration_ms = max(duration_ms, _SMALLEST_MS)
        number = int(_log(duration_ms / _SMALLEST_MS) / _GROWTH)
        bins = self.bins
        bins[number] = bins.get(number, 0) + 1
        self.count += 1
        self.highest_ms = max(self.highest_ms, duration_ms)

    def merge(self, other: "Histogram") -> None:
        """Count everything that another one counted."""
        for number, count in other.bins.items():
            self.bins[number] = self.bins.get(number, 0) + count
        self.count += other.count
        self.highest_ms = max(self.highest_ms, other.highest_ms)

    def quantile_ms(self, share: float) -> float:
        """The upper end of the bin in which `share` of all are reached; 0 of nothing."""
        wanted = max(1, math.ceil(self.count * share))
        reached = 0
        for number in sorted(self.bins):
            reached += self.bins[number]
            if reached >= wanted:
                return min(self.highest_ms, _SMALLEST_MS * math.exp((number + 1) * _GROWTH))
        return 0.0
