"""What a run found out, in a form that is printed, drawn and kept as JSON."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

import msgspec

from bench.measure import Measured, Round
from bench.open_loop import OpenLoopResult

TABLE_KINDS: Final = ("api", "drain", "redis", "postgres")
"""Kinds of process with a column of their own; the rest is `others`."""
OTHERS: Final = "others"


class RoundReport(msgspec.Struct, frozen=True):
    """One closed loop."""

    requests_per_s: float
    answered: int
    refused: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    window_s: float
    cpu_us: dict[str, float]
    """Per request, by kind of process as the row names them."""
    wrk_us: float
    """Per request."""


class OpenReport(msgspec.Struct, frozen=True):
    """The open loop of a row: arrivals at random, latency from the moment a request was due."""

    rate_per_s: float
    answered: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    late_sends: int
    behind_max_ms: float
    generator_us: float
    """The generator's CPU per request."""


class RowReport(msgspec.Struct, frozen=True):
    """A row: medians over its rounds, and the rounds."""

    name: str
    title: str
    level: str
    signed: bool
    requests_per_s: float
    slowest_per_s: float
    fastest_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]
    """Per request by kind of process, `TABLE_KINDS` and `others`: medians."""
    cpu_sum_us: float
    """Median of the sums."""
    wrk_us: float
    violations: list[str]
    failure: str | None
    rounds: list[RoundReport]
    open_loop: OpenReport | None

    @property
    def sound(self) -> bool:
        """Was it measured to the end, and does everything hold that should?"""
        return self.failure is None and not self.violations and bool(self.rounds)

    @property
    def spread(self) -> float:
        """The larger distance of a round from the median, as a share of the median."""
        if not self.requests_per_s:
            return 0.0
        far = max(self.fastest_per_s - self.requests_per_s, self.requests_per_s - self.slowest_per_s)
        return far / self.requests_per_s


class TargetReport(msgspec.Struct, frozen=True):
    """A target as it goes into the file; see `bench.targets.TargetResult`."""

    name: str
    value: float
    target: float
    at_least: bool
    unit: str
    detail: str
    met: bool


class Report(msgspec.Struct, frozen=True):
    """A whole run."""

    taken_at: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[RowReport]
    skipped: dict[str, str]
    targets: list[TargetReport]
    took_s: float


def group_kinds(cpu_us: Mapping[str, float]) -> dict[str, float]:
    """Figures by kind with everything outside `TABLE_KINDS` put together."""
    grouped = {kind: cpu_us[kind] for kind in TABLE_KINDS if kind in cpu_us}
    others = sum(us for kind, us in cpu_us.items() if kind not in TABLE_KINDS)
    return {**grouped, OTHERS: others} if others else grouped


def report_row(measured: Measured) -> RowReport:
    """Medians of what was measured; zeros for a row that failed before its first round."""
    row, rounds = measured.row, measured.rounds
    rates = [entry.loop.requests_per_s for entry in rounds] or [0.0]
    grouped = [group_kinds(entry.cpu_us) for entry in rounds]
    kinds = dict.fromkeys(kind for figures in grouped for kind in figures)
    return RowReport(
        name=row.name,
        title=row.title,
        level=row.level.value,
        signed=row.signed,
        requests_per_s=median(rates),
        slowest_per_s=min(rates),
        fastest_per_s=max(rates),
        p50_ms=_median([entry.loop.p50_ms for entry in rounds]),
        p99_ms=_median([entry.loop.p99_ms for entry in rounds]),
        cpu_us={kind: _median([figures.get(kind, 0.0) for figures in grouped]) for kind in kinds},
        cpu_sum_us=_median([entry.cpu_sum_us for entry in rounds]),
        wrk_us=_median([entry.wrk_us for entry in rounds]),
        violations=list(measured.violations or ()),
        failure=measured.failure,
        rounds=[_report_round(entry) for entry in rounds],
        open_loop=_report_open(measured.open_loop),
    )


def _median(values: Sequence[float]) -> float:
    return median(values) if values else 0.0


def _report_round(entry: Round) -> RoundReport:
    loop = entry.loop
    return RoundReport(
        requests_per_s=loop.requests_per_s,
        answered=loop.answered,
        refused=loop.refused,
        p50_ms=loop.p50_ms,
        p90_ms=loop.p90_ms,
        p99_ms=loop.p99_ms,
        window_s=loop.window_s,
        cpu_us=dict(entry.cpu_us),
        wrk_us=entry.wrk_us,
    )


def _report_open(result: OpenLoopResult | None) -> OpenReport | None:
    if result is None:
        return None
    latency = result.latency
    return OpenReport(
        rate_per_s=result.due / result.duration_s,
        answered=latency.samples_count,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        p999_ms=latency.p999_ms,
        max_ms=latency.max_ms,
        late_sends=result.late_sends,
        behind_max_ms=result.behind_max_ms,
        generator_us=result.cpu_s * 1e6 / max(1, result.sent),
    )
