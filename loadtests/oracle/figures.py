"""Figures of a run: what the budgets are held against and what the report draws. One pass, no rule."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from loadtests.oracle.evidence import Evidence
from loadtests.oracle.histogram import Histogram
from loadtests.oracle.tracks import NEVER_MS, Seen, outcome_of
from loadtests.oracle.verdict import Budget, Series
from loadtests.records import GRAB, Answered, DropSample, RunFacts
from loadtests.scenario import Budgets

BUCKETS_MAX_COUNT: Final = 240
"""Points of a plot: more than its pixels show nothing."""
_WIDTHS_MS: Final = (100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0)
QUANTILES: Final[Mapping[str, float]] = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
_PROBLEM_FROM: Final = 400


class RunFigures:
    """Counts and times over the records of the run (not over what the oracle asked)."""

    def __init__(self, facts: RunFacts) -> None:
        length_ms = max(1.0, facts.ended_ms - facts.started_ms)
        fitting = (width for width in _WIDTHS_MS if length_ms / width <= BUCKETS_MAX_COUNT)
        self._started_ms: Final = facts.started_ms
        self._bucket_ms: Final = next(fitting, length_ms / BUCKETS_MAX_COUNT)
        self._buckets_count: Final = int(length_ms / self._bucket_ms) + 1
        self._by_bucket: Final[dict[str, list[int]]] = {}
        self._latencies: Final[dict[int, Histogram]] = defaultdict(Histogram)
        self.outcomes: Final[Counter[str]] = Counter()
        self.requests_count = 0
        self._grabs_count = 0
        self._answered_count = 0
        self._errors_count = 0
        self._unanswered_count = 0
        self._overloaded_count = 0

    def add(self, record: Answered) -> None:
        """Count one record."""
        self.requests_count += 1
        outcome = outcome_of(record)
        self.outcomes[outcome] += 1
        bucket = self._bucket(record.answered_ms)
        counts = self._by_bucket.get(outcome)
        if counts is None:
            counts = self._by_bucket[outcome] = [0] * self._buckets_count
        counts[bucket] += 1
        if record.action == GRAB and outcome != "abandoned":
            self._grabs_count += 1
            if record.status:
                self._add_answered(record, bucket)
            else:
                self._unanswered_count += 1

    def _add_answered(self, record: Answered, bucket: int) -> None:
        latency_ms = record.answered_ms - record.intended_ms
        self._latencies[bucket].add(latency_ms)
        self._answered_count += 1
        if record.status in {429, 503}:
            self._overloaded_count += 1
        elif record.status >= _PROBLEM_FROM and record.status != 409 and record.code != "unknown_request":  # noqa: PLR2004 - refused by rule
            self._errors_count += 1

    def budgets(self, limits: Budgets, evidence: Evidence) -> list[Budget]:
        """Every figure that a scenario may limit, with its limit."""
        first, confirmed = _waits(evidence)
        latency = Histogram()
        for bucket in self._latencies.values():
            latency.merge(bucket)
        grabs, answered = max(1, self._grabs_count), max(1, self._answered_count)

        def time(name: str, found: Histogram, share: float, limit: float | None, over: str) -> Budget:
            measured = found.quantile_ms(share)
            return Budget(name=name, measured=measured, limit=limit, unit="ms", over=over, count=found.count)

        def share(name: str, count: int, of: int, limit: float, over: str) -> Budget:
            return Budget(name=name, measured=count / of, limit=limit, unit="share", over=over, count=of)

        due = "grabs answered, from when they were due"
        return [
            time("p50", latency, 0.50, limits.p50_ms, due),
            time("p99", latency, 0.99, limits.p99_ms, due),
            time(
                "first answer p99", first, 0.99, limits.first_answer_p99_ms, "numbers, to their first answer"
            ),
            time(
                "confirmed p99",
                confirmed,
                0.99,
                limits.confirmed_within_ms,
                "vouchers, from the first attempt",
            ),
            share("errors", self._errors_count, answered, limits.errors_share, "answered grabs"),
            share(
                "unanswered", self._unanswered_count, grabs, limits.unanswered_share, "grabs not abandoned"
            ),
            share("overloaded", self._overloaded_count, answered, limits.overloaded_share, "answered grabs"),
        ]

    def series(self, samples: Sequence[DropSample]) -> Series:
        """The run over time."""
        latencies: dict[str, list[float | None]] = {}
        for name, quantile in QUANTILES.items():
            found = (self._latencies.get(bucket) for bucket in range(self._buckets_count))
            latencies[name] = [
                None if part is None else round(part.quantile_ms(quantile), 2) for part in found
            ]
        return Series(
            bucket_ms=self._bucket_ms,
            outcomes=self._by_bucket,
            latencies_ms=latencies,
            stock=self._stock(samples),
        )

    def _stock(self, samples: Sequence[DropSample]) -> dict[str, list[int]]:
        """Units of all drops together; between two samples of a drop its earlier one stands.

        A sample taken while rebuilding knows nothing of units and is passed over.
        """
        last: dict[str, DropSample] = {}
        by_bucket: dict[int, list[DropSample]] = defaultdict(list)
        for sample in samples:
            if sample.state != "rebuilding":
                by_bucket[self._bucket(sample.at_ms)].append(sample)
                last.setdefault(sample.drop_id, sample)
        stock: dict[str, list[int]] = {"available": [], "pending": [], "issued": []}
        for bucket in range(self._buckets_count if last else 0):
            last.update((sample.drop_id, sample) for sample in by_bucket.get(bucket, ()))
            stock["available"].append(sum(sample.available for sample in last.values()))
            stock["pending"].append(sum(sample.pending for sample in last.values()))
            stock["issued"].append(sum(sample.issued for sample in last.values()))
        return stock

    def _bucket(self, at_ms: float) -> int:
        place = int((at_ms - self._started_ms) / self._bucket_ms)
        return min(max(place, 0), self._buckets_count - 1)


def _waits(evidence: Evidence) -> tuple[Histogram, Histogram]:
    """Per number, from when its first attempt was due: to the first answer, and to the voucher."""
    first, confirmed = Histogram(), Histogram()
    for _, track in evidence.book:
        if not track.seen & Seen.GRABBED:
            continue
        if track.first_answer_ms < NEVER_MS:
            first.add(track.first_answer_ms - track.first_due_ms)
        if track.voucher_ms < NEVER_MS:
            confirmed.add(track.voucher_ms - track.first_due_ms)
    return first, confirmed
