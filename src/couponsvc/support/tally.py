"""Counts on the hot path: kept in plain numbers, carried over to the metrics a few times a second.

One increment of a multiprocess metric costs about 2 µs, a histogram observation about 3; per
request that would be a tenth of a grab's whole budget.
"""

# Imported by metric modules only, after support.metrics has chosen the multiprocess mode.
import asyncio
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import Counter, Histogram

FLUSH_EVERY_S: Final = 0.25
"""How far the metrics may trail what happened; well below any scrape interval."""


Key = TypeVar("Key", bound=Hashable)


class Tally(Generic[Key]):
    """Counts by one label, and optionally durations, carried over by a timer of the running loop.

    Args:
        counter: With one label.
        histogram: Without labels.
        label_of: The label's value for what `count` is given.
    """

    def __init__(
        self,
        counter: Counter,
        histogram: Histogram | None = None,
        *,
        label_of: Callable[[Key], str],
    ) -> None:
        self._counter: Final = counter
        self._label_of: Final = label_of
        self._histogram: Final = histogram
        bounds: Sequence[float] = histogram._upper_bounds if histogram is not None else ()  # noqa: SLF001 - see flush
        self._bounds: Final = tuple(bounds)
        self._counts: dict[Key, int] = {}
        self._bucket_counts: list[int] = [0] * len(self._bounds)
        self._sum_s = 0.0
        self._scheduled = False

    def count(self, key: Key, increment: int = 1) -> None:
        """Add to the count of what `label_of` names."""
        self._counts[key] = self._counts.get(key, 0) + increment
        if not self._scheduled:
            self._schedule()

    def observe(self, duration_s: float) -> None:
        """Add one duration."""
        self._bucket_counts[bisect_left(self._bounds, duration_s)] += 1
        self._sum_s += duration_s
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self.flush)

    def flush(self) -> None:
        """Carry over what was counted. Bulk observation has no public form in prometheus_client."""
        self._scheduled = False
        counts, self._counts = self._counts, {}
        for key, increment in counts.items():
            self._counter.labels(self._label_of(key)).inc(increment)
        if self._histogram is not None and self._sum_s:
            for bucket, increment in enumerate(self._bucket_counts):
                if increment:
                    self._histogram._buckets[bucket].inc(increment)  # noqa: SLF001
            self._histogram._sum.inc(self._sum_s)  # noqa: SLF001
            self._bucket_counts = [0] * len(self._bounds)
            self._sum_s = 0.0
