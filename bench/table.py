"""The run as text: rows, open loop, targets. At most 110 columns."""

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.report import OTHERS, TABLE_KINDS, Report, RowReport, TargetReport

WIDTH: Final = 110
SHORT: Final = {"postgres": "pg", OTHERS: "oth"}
LEVELS: Final = (
    "Holds when the answer is sent: A decrement, B + duplicate guard, C + queued, D committed in Postgres."
)
FIGURES: Final = (
    "CPU in microseconds per request; spread: the round farthest from the median; p50 and p99 in ms, closed"
    " loop at {connections} connections."
)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print everything that a person reads."""
    console = console or Console(width=WIDTH, highlight=False)
    machine = report.machine
    console.print(
        f"{report.taken_at}  {machine['cpu']}, {machine['cores']} cores, {machine['system']},"
        f" Python {machine['python']}, {machine['redis']}, {machine['postgres']},"
        f" data on {machine['file_system']}",
        style="dim",
    )
    console.print(rows_table(report.rows))
    console.print(f"{LEVELS}\n{FIGURES.format(connections=report.settings['connections'])}", style="dim")
    generator = [row.wrk_us for row in report.rows if row.rounds]
    if generator:
        console.print(
            f"wrk itself took {min(generator):.0f} to {max(generator):.0f} µs per request, not in the sums.",
            style="dim",
        )
    for row in report.rows:
        for problem in (*([row.failure] if row.failure else []), *row.violations):
            console.print(Text(f"{row.name}: {problem}", style="red"))
    for name, reason in report.skipped.items():
        console.print(f"not measured: {name}: {reason}", markup=False)
    opened = [row for row in report.rows if row.open_loop is not None]
    if opened:
        console.print(open_table(opened))
    if report.targets:
        console.print(targets_table(report.targets))
    console.print(f"took {report.took_s / 60:.1f} minutes", style="dim")


def rows_table(rows: Sequence[RowReport]) -> Table:
    """One line per row."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, title="The same job, side by side")
    table.add_column("contender", max_width=37)
    table.add_column("lvl")
    table.add_column("sig")
    for name in ("req/s", "spread", "p50", "p99"):
        table.add_column(name, justify="right")
    for kind in (*TABLE_KINDS, OTHERS):
        table.add_column(SHORT.get(kind, kind), justify="right")
    table.add_column("sum", justify="right")
    table.add_column("holds")
    for row in rows:
        table.add_row(row.title, row.level, "yes" if row.signed else "", *_figures(row), _verdict(row))
    return table


def _figures(row: RowReport) -> list[str]:
    if not row.rounds:
        return [""] * (5 + len(TABLE_KINDS) + 1)
    kinds = [f"{row.cpu_us[kind]:.0f}" if kind in row.cpu_us else "" for kind in (*TABLE_KINDS, OTHERS)]
    return [
        f"{row.requests_per_s:,.0f}",
        f"±{row.spread * 100:.0f}%",
        _ms(row.p50_ms),
        _ms(row.p99_ms),
        *kinds,
        f"{row.cpu_sum_us:.0f}",
    ]


def _ms(value: float) -> str:
    """Three digits are more than a latency is good for."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004


def _verdict(row: RowReport) -> Text:
    if row.failure is not None:
        return Text("FAILED", "red bold")
    return Text("VIOLATED", "red bold") if row.violations else Text("yes", "green")


def open_table(rows: Sequence[RowReport]) -> Table:
    """Latencies where a row is driven at half of its own rate, whatever its answers take."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        title="Latency in open loop, random arrivals at half of the row's own req/s (ms from due)",
    )
    table.add_column("contender", max_width=37)
    table.add_column("lvl")
    for name in ("arrivals/s", "p50", "p90", "p99", "p99.9", "max", "late sends", "behind", "own µs"):
        table.add_column(name, justify="right")
    for row in rows:
        found = row.open_loop
        assert found is not None
        times = (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms)
        late = f"{found.late_sends / max(1, found.answered) * 100:.1f}%"
        table.add_row(
            row.title,
            row.level,
            f"{found.rate_per_s:,.0f}",
            *map(_ms, times),
            late,
            _ms(found.behind_max_ms),
            f"{found.generator_us:.0f}",
        )
    return table


def targets_table(targets: Sequence[TargetReport]) -> Table:
    """One line per target, and whether it is met."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, title="Targets")
    table.add_column("target", max_width=48)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("should be", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("from", max_width=36)
    for target in targets:
        table.add_row(
            target.name,
            _quantity(target.value, target.unit),
            f"{'≥' if target.at_least else '≤'} {_quantity(target.target, target.unit)}",
            Text("met", "green") if target.met else Text("missed", "red bold"),
            target.detail,
        )
    return table


def _quantity(value: float, unit: str) -> str:
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004
    return f"{digits} {unit}".strip()
