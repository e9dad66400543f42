"""The demo's last word: one table."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from couponsvc.demo.figures import Figures
from couponsvc.demo.promises import Promise, shown


class CheckResult(NamedTuple):
    """What `couponsvc check` said."""

    exit_code: int
    last_line: str


class Costs(NamedTuple):
    """CPU seconds during the rush."""

    by_process: Mapping[str, float]
    """Empty where the system does not tell."""
    confirmed_count: int
    requests_count: int


def result_table(
    title: str, promises: Sequence[Promise], check: CheckResult, figures: Figures, costs: Costs
) -> Table:
    """Promises, conservation, speed, outcomes and costs, in that order."""
    table = Table(title=title, title_justify="left", show_header=False, min_width=80)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for promise in promises:
        table.add_row(f"{promise.number} {promise.name}", _verdict(promise))
    drift = "zero drift" if check.exit_code == 0 else f"exit code {check.exit_code}: {check.last_line}"
    table.add_row("couponsvc check", _marked(drift, good=check.exit_code == 0))
    table.add_section()
    for drop in figures.drops:
        when = "stock remained" if drop.sold_out_after_s is None else f"in {drop.sold_out_after_s:.2f} s"
        table.add_row(drop.drop_id, f"{drop.issued:,} of {drop.quantity:,} issued, {when}")
    table.add_row(
        "confirmed",
        f"{figures.confirmed_count:,} at {figures.confirmed_per_s:,.0f}/s until the last was gone; "
        f"201 in p50 {figures.confirmed_p50_ms:.1f} ms, p99 {figures.confirmed_p99_ms:.1f} ms",
    )
    table.add_row(
        "requests",
        f"{figures.requests_count:,} in {figures.rush_s:.1f} s, {figures.requests_per_s:,.0f}/s",
    )
    table.add_section()
    table.add_row("answers", _counts(figures.outcomes))
    table.add_row("pressed", _counts(figures.whys))
    if costs.by_process:
        table.add_section()
        for name, seconds in costs.by_process.items():
            table.add_row(f"CPU {name}", _cost(seconds, costs))
        table.add_row("CPU together", _cost(sum(costs.by_process.values()), costs))
    return table


def _verdict(promise: Promise) -> Text:
    if promise.kept:
        return _marked(f"kept: {promise.checked}", good=True)
    return _marked("\n".join([f"BROKEN, {len(promise.violations):,} times", *shown(promise)]), good=False)


def _marked(text: str, *, good: bool) -> Text:
    return Text(text, style="green" if good else "bold red")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _cost(seconds: float, costs: Costs) -> str:
    per_voucher_us = seconds * 1e6 / max(1, costs.confirmed_count)
    per_request_us = seconds * 1e6 / max(1, costs.requests_count)
    return f"{seconds:6.2f} s: {per_request_us:4.0f} µs per request, {per_voucher_us:5.0f} µs per voucher"
