"""The demo's last word: one table."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from couponsvc.demo.figures import Figures
from couponsvc.demo.hearing import Hearing
from couponsvc.demo.promises import Promise, shown


class CheckResult(NamedTuple):
    """What `couponsvc check` said."""

    exit_code: int
    last_line: str


class Costs(NamedTuple):
    """CPU seconds by process; empty where the system does not tell."""

    whole: Mapping[str, float]
    """From the first early press to the last answer."""
    until_gone: Mapping[str, float]
    """To the moment when everything was seen issued; empty where it never was."""
    confirmed_count: int
    requests_count: int


class Heard(NamedTuple):
    """How a subscribed partner fared."""

    hearing: Hearing
    kills: Mapping[str, int]
    """Of whom, how often; zeros where nobody was to be killed."""


def result_table(
    title: str,
    promises: Sequence[Promise],
    check: CheckResult,
    figures: Figures,
    costs: Costs,
    *,
    heard: Heard | None = None,
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
    if heard is not None:
        table.add_row("partner", _heard(heard))
    table.add_section()
    table.add_row("answers", _counts(figures.outcomes))
    table.add_row("pressed", _counts(figures.whys))
    if costs.whole:
        table.add_section()
        for name in costs.whole:
            table.add_row(f"CPU {name}", _cost(costs, [name]))
        table.add_row("CPU together", _cost(costs, list(costs.whole)))
    return table


def _heard(heard: Heard) -> str:
    hearing = heard.hearing
    text = (
        f"{hearing.events_count:,} events, {hearing.again_count:,} of them again; from commit to receipt "
        f"p50 {hearing.lag_p50_ms:,.0f}, p99 {hearing.lag_p99_ms:,.0f}, at most {hearing.lag_max_ms:,.0f} ms"
    )
    if any(heard.kills.values()):
        text += "; killed: " + ", ".join(f"{name} {count} times" for name, count in heard.kills.items())
    return text


def _verdict(promise: Promise) -> Text:
    if promise.kept:
        return _marked(f"kept: {promise.checked}", good=True)
    return _marked("\n".join([f"BROKEN, {len(promise.violations):,} times", *shown(promise)]), good=False)


def _marked(text: str, *, good: bool) -> Text:
    return Text(text, style="green" if good else "bold red")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _cost(costs: Costs, names: Sequence[str]) -> str:
    """In the whole rush per request; until all was issued per voucher, refusals of that time included."""
    whole_s = sum(costs.whole[name] for name in names)
    text = f"{whole_s:6.2f} s, {whole_s * 1e6 / max(1, costs.requests_count):4.0f} µs per request"
    if costs.until_gone:
        gone_s = sum(costs.until_gone.get(name, 0.0) for name in names)
        per_voucher_us = gone_s * 1e6 / max(1, costs.confirmed_count)
        text += f"; {gone_s:5.2f} s, {per_voucher_us:4.0f} µs per voucher until all were issued"
    return text
