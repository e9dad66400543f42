"""The run as a picture: one SVG file that needs nothing else, light or dark as its reader likes.

Left, requests per second with the slowest and the fastest round; right, CPU microseconds per request
stacked by kind of process.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from statistics import median
from typing import Final

from bench.report import OTHERS, TABLE_KINDS, Report, RowReport

WIDTH: Final = 1200
LABEL_WIDTH: Final = 310
PANEL_WIDTH: Final = 360
GAP: Final = 80
ROW_HEIGHT: Final = 26
BAR_HEIGHT: Final = 16
TOP: Final = 96
BOTTOM: Final = 60
TICKS_COUNT: Final = 4
"""About so many steps of an axis."""
STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
CUT_AT: Final = 3.0
"""Times the median row, from where a bar of CPU is cut off: one dear row must not flatten all others."""
COLOURS: Final = {
    "api": "#3b6fb6",
    "drain": "#d08a2e",
    "redis": "#b5483f",
    "postgres": "#4f8f6a",
    OTHERS: "#8a8f98",
}
"""Told apart also in grey and by most colour-blind readers; each is named in the legend."""
STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #1c2128; }
.small { font-size: 11px; fill: #59636e; }
.title { font-size: 17px; font-weight: 600; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.ours { fill: #3b6fb6; } .other { fill: #8a8f98; } .whisker { stroke: #1c2128; stroke-width: 1.5; }
.paper { fill: #ffffff; } .cut { stroke: #ffffff; stroke-width: 2.5; fill: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; } .grid { stroke: #3d444d; }
  .whisker { stroke: #e6edf3; } .paper { fill: #0d1117; } .cut { stroke: #0d1117; }
}
"""


def render_chart(report: Report) -> str:
    """The whole file."""
    rows = [row for row in report.rows if row.rounds]
    height = TOP + len(rows) * ROW_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Requests per second and CPU per request</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        _text(16, 30, "The same job, side by side", "title"),
        _text(16, 50, _caption(report), "small"),
    ]
    if rows:
        parts += _rates(rows, LABEL_WIDTH)
        parts += _cpu(rows, LABEL_WIDTH + PANEL_WIDTH + GAP)
    for place, row in enumerate(rows):
        label = f"{row.title}{', signed' if row.signed else ''} ({row.level})"
        parts.append(_text(LABEL_WIDTH - 10, _middle(place) + 4, label, anchor="end"))
    return "\n".join([*parts, "</svg>\n"])


def _caption(report: Report) -> str:
    machine = report.machine
    return f"{report.taken_at}, {machine['cpu']}, {machine['cores']} cores, load generator included"


def _rates(rows: Sequence[RowReport], left: float) -> Iterator[str]:
    top = max(row.fastest_per_s for row in rows)
    yield _text(left, TOP - 14, "requests per second, median; line: slowest to fastest round", "small")
    yield from _axis(left, top, len(rows))
    for place, row in enumerate(rows):
        kind = "ours" if row.title.startswith("couponsvc") else "other"
        y = _middle(place)
        yield _bar(left, y, row.requests_per_s / top * PANEL_WIDTH, f'class="{kind}"')
        low, high = (left + rate / top * PANEL_WIDTH for rate in (row.slowest_per_s, row.fastest_per_s))
        yield f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
        yield _text(high + 6, y + 4, f"{row.requests_per_s:,.0f}", "small")


def _cpu(rows: Sequence[RowReport], left: float) -> Iterator[str]:
    sums = [sum(row.cpu_us.values()) for row in rows]
    top = min(max(sums), CUT_AT * median(sums))
    yield _text(left, TOP - 14, "CPU µs per request by process", "small")
    yield from _axis(left, top, len(rows))
    for place, row in enumerate(rows):
        x, y = left, _middle(place)
        for kind in (*TABLE_KINDS, OTHERS):
            width = min(row.cpu_us.get(kind, 0.0) / top * PANEL_WIDTH, left + PANEL_WIDTH - x)
            if width > 0:
                yield _bar(x, y, width, f'fill="{COLOURS[kind]}"')
                x += width
        if sums[place] > top:
            at = left + PANEL_WIDTH - 14
            yield f'<path class="cut" d="M{at} {y + 11} l6 -22 m5 0 l-6 22"/>'
        yield _text(x + 6, y + 4, f"{row.cpu_sum_us:,.0f}", "small")
    x, y = left, TOP + len(rows) * ROW_HEIGHT + 40
    for kind in (*TABLE_KINDS, OTHERS):
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{COLOURS[kind]}"/>'
        yield _text(x + 17, y, kind, "small")
        x += 34 + 7 * len(kind)


def _axis(left: float, top: float, rows_count: int) -> Iterator[str]:
    bottom = TOP + rows_count * ROW_HEIGHT
    step = round_step(top / TICKS_COUNT)
    for tick in range(int(top / step) + 1):
        x = left + tick * step / top * PANEL_WIDTH
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}"/>'
        yield _text(x, bottom + 16, f"{tick * step:,.0f}", "small", anchor="middle")


def round_step(at_least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(step * power for step in STEPS if step * power >= at_least * (1 - 1e-9))


def _middle(place: int) -> float:
    return TOP + place * ROW_HEIGHT + ROW_HEIGHT / 2


def _bar(x: float, middle: float, width: float, look: str) -> str:
    y = middle - BAR_HEIGHT / 2
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" {look}/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named} text-anchor="{anchor}">{escape(words)}</text>'
