"""Which plots a report has, and what they are made of."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from loadtests.oracle.verdict import Series, Verdict
from loadtests.records import RunFacts
from loadtests.report.chart import Layer, Mark, legend, lines, stacked

_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "issued": ("issued (201)", "issued"),
    "repeated": ("repeated (200)", "repeated"),
    "looked up": ("repeated (200)", "repeated"),
    "pending": ("pending (202)", "pending"),
    "sold_out": ("sold out", "sold-out"),
    "person_limit": ("person limit", "limit"),
    "not_started": ("not started", "early"),
    "overloaded": ("overloaded, slowed down or rebuilding", "overloaded"),
    "rate_limited": ("overloaded, slowed down or rebuilding", "overloaded"),
    "rebuilding": ("overloaded, slowed down or rebuilding", "overloaded"),
    "gate_unavailable": ("overloaded, slowed down or rebuilding", "overloaded"),
    "ended": ("other refusals", "refused"),
    "paused": ("other refusals", "refused"),
    "request_mismatch": ("other refusals", "refused"),
    "not_eligible": ("other refusals", "refused"),
    "unknown_request": ("other refusals", "refused"),
    "abandoned": ("abandoned by the person", "left"),
    "unanswered": ("unanswered", "silent"),
}
FEW_COUNT: Final = 4
"""Drops whose selling out is marked one by one."""
_OTHERWISE: Final = ("errors", "error")


def plots(verdict: Verdict, facts: RunFacts) -> Iterator[str]:
    """Figures in the order they are read: what was left, what was answered, how fast."""
    series = verdict.series
    bucket_s = series.bucket_ms / 1000
    marks = _marks(verdict, facts)
    if series.stock:
        layers = [
            Layer("issued", "issued", series.stock["issued"]),
            Layer("pending", "pending", series.stock["pending"]),
            Layer("available", "available", series.stock["available"]),
        ]
        yield _figure("Where the units were", stacked("units over time", layers, bucket_s, marks), layers)
    if series.outcomes:
        layers = _outcome_layers(series)
        yield _figure("Answers per second", stacked("answers per second", layers, bucket_s, marks), layers)
    if any(value is not None for values in series.latencies_ms.values() for value in values):
        layers = [Layer(name, name, values) for name, values in series.latencies_ms.items()]
        caption = "Latency of grabs in milliseconds, from when they were due"
        yield _figure(caption, lines("latency percentiles", layers, bucket_s, marks), layers)


def _outcome_layers(series: Series) -> list[Layer]:
    bucket_s = series.bucket_ms / 1000
    summed: dict[tuple[str, str], list[float]] = {}
    for outcome, counts in series.outcomes.items():
        kind = _KINDS.get(outcome, _OTHERWISE)
        before: Sequence[float] = summed.get(kind, [0.0] * len(counts))
        summed[kind] = [value + count / bucket_s for value, count in zip(before, counts, strict=True)]
    order = [*dict.fromkeys(_KINDS.values()), _OTHERWISE]
    return [Layer(name, kind, summed[name, kind]) for name, kind in order if (name, kind) in summed]


def _marks(verdict: Verdict, facts: RunFacts) -> list[Mark]:
    """The openings, and when each drop was sold out; of many drops only when the last was."""
    opens = sorted({(drop.opens_ms - facts.started_ms) / 1000 for drop in facts.drops})
    marks = [Mark(at_s, "opens") for at_s in opens if at_s >= 0]
    gone = [(row.sold_out_ms / 1000, row.drop_id) for row in verdict.drops if row.sold_out_ms is not None]
    if len(gone) <= FEW_COUNT:
        marks += [Mark(at_s, "sold out") for at_s, _ in gone]
    elif len(gone) == len(verdict.drops):
        marks.append(Mark(max(gone)[0], "all sold out"))
    else:
        marks.append(Mark(max(gone)[0], f"{len(gone)} of {len(verdict.drops)} sold out"))
    return marks


def _figure(caption: str, plot: str, layers: Sequence[Layer]) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{plot}{legend(layers)}</figure>"
