"""The targets that compare rows of the table: ratios within one run carry over to another machine."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from bench.report import RowReport
from bench.targets import TargetResult


class Ratio(NamedTuple):
    """Requests per second of one row over those of another, which must be at least `target`."""

    name: str
    row: str
    other: str
    target: float


RATIOS: Final = (
    Ratio("confirmed, signed : the usual service", "confirmed", "usual-service", 12.0),
    Ratio("confirmed, signed : empty FastAPI endpoint", "confirmed", "fastapi-echo", 3.0),
    Ratio("confirmed, signed : Go + Redis (C)", "confirmed", "go", 0.8),
    Ratio("respond-async, signed : Fastify + Redis (C)", "respond-async", "fastify", 1.2),
    Ratio("sold out, signed : raw ASGI echo", "sold-out", "raw-asgi", 0.7),
    Ratio("sold out, bearer : raw ASGI echo", "sold-out-bearer", "raw-asgi", 0.85),
    Ratio("repeated number, signed : raw ASGI echo", "repeated", "raw-asgi", 0.55),
)
CPU_PER_VOUCHER: Final = ("CPU per confirmed voucher, everything", "confirmed", 75.0)
"""All our processes, Redis and Postgres; the generator is not in it."""


def judge_targets(rows: Sequence[RowReport]) -> list[TargetResult]:
    """The targets that the table's rows allow to judge; those of rows that are missing are left out."""
    by_name = {row.name: row for row in rows if row.sound}
    results = [
        TargetResult(
            ratio.name,
            by_name[ratio.row].requests_per_s / by_name[ratio.other].requests_per_s,
            ratio.target,
            at_least=True,
            unit="",
            detail=" : ".join(f"{by_name[name].requests_per_s:,.0f}" for name in (ratio.row, ratio.other)),
        )
        for ratio in RATIOS
        if ratio.row in by_name and ratio.other in by_name
    ]
    name, row, at_most = CPU_PER_VOUCHER
    if row in by_name:
        parts = ", ".join(f"{kind} {us:.0f}" for kind, us in by_name[row].cpu_us.items() if us >= 1)
        results.append(
            TargetResult(name, by_name[row].cpu_sum_us, at_most, at_least=False, unit="µs", detail=parts)
        )
    return results
