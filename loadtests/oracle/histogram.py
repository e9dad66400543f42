"""Percentiles of millions of values in a few kilobytes: counts in bins one per cent wide."""

import math
from collections import Counter
from typing import Final

_GROWTH: Final = math.log(1.01)
"""A bin ends one per cent above where it begins, so a percentile is at most that far too high."""
_SMALLEST_MS: Final = 0.01


class Histogram:
    """Counts of durations in milliseconds."""

    __slots__ = ("_bins", "count", "highest_ms")

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self.count = 0
        self.highest_ms = 0.0

    def add(self, duration_ms: float) -> None:
        """Count one."""
        self._bins[math.floor(math.log(max(duration_ms, _SMALLEST_MS) / _SMALLEST_MS) / _GROWTH)] += 1
        self.count += 1
        self.highest_ms = max(self.highest_ms, duration_ms)

    def quantile_ms(self, share: float) -> float:
        """The upper end of the bin in which `share` of all are reached; 0 of nothing."""
        wanted = max(1, math.ceil(self.count * share))
        reached = 0
        for number in sorted(self._bins):
            reached += self._bins[number]
            if reached >= wanted:
                return min(self.highest_ms, _SMALLEST_MS * math.exp((number + 1) * _GROWTH))
        return 0.0
