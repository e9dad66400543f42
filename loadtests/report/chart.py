"""Plots as inline SVG: stacked areas and lines over time. Colours come from the page's style sheet.

Our own few lines instead of a plotting library: the page must work offline, in print and in the
dark, and a plot of two hundred points needs no more.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 960
HEIGHT: Final = 240
_LEFT: Final = 64
_RIGHT: Final = 16
_TOP: Final = 26
_BOTTOM: Final = 30
_TICKS_COUNT: Final = 4
_X_TICKS_COUNT: Final = 8
_MARKS_MAX_COUNT: Final = 12
"""More vertical lines than this hide what they mark."""
_CHARACTER: Final = 7.0
"""Width of a label's character, generously."""


class Layer(NamedTuple):
    """One named sequence of values; `kind` is its class in the style sheet."""

    name: str
    kind: str
    values: Sequence[float | None]


class Mark(NamedTuple):
    """A moment worth a vertical line."""

    at_s: float
    says: str


class Axis(NamedTuple):
    """From values to heights, linear or logarithmic."""

    ticks: Sequence[float]
    low: float
    high: float
    logarithmic: bool

    def y(self, value: float) -> float:
        """Height of a value, in the plot's units, from the top."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM)


def stacked(title: str, layers: Sequence[Layer], bucket_s: float, marks: Sequence[Mark] = ()) -> str:
    """Layers on top of each other, each value held over its bucket."""
    count = len(layers[0].values)
    base = [0.0] * count
    tops = []
    for layer in layers:
        base = [low + (value or 0.0) for low, value in zip(base, layer.values, strict=True)]
        tops.append(base)
    axis = linear_axis(max(base, default=0.0))
    low = [0.0] * count
    parts = []
    for layer, top in zip(layers, tops, strict=True):
        points = [*_steps(top, axis, count), *reversed(list(_steps(low, axis, count)))]
        parts.append(f'<polygon class="area {layer.kind}" points="{_text(points)}">{_named(layer)}</polygon>')
        low = top
    return _frame(title, "".join(parts), axis, count * bucket_s, marks)


def lines(title: str, layers: Sequence[Layer], bucket_s: float, marks: Sequence[Mark] = ()) -> str:
    """One line per layer over a logarithmic axis; a bucket without value interrupts it."""
    count = len(layers[0].values)
    values = [value for layer in layers for value in layer.values if value]
    axis = logarithmic_axis(min(values, default=1.0), max(values, default=10.0))
    parts = []
    for layer in layers:
        for piece in _pieces(layer.values):
            points = [(_x(place + 0.5, count), axis.y(value)) for place, value in piece]
            parts.append(_dot(layer, points[0]) if len(points) == 1 else _polyline(layer, points))
    return _frame(title, "".join(parts), axis, count * bucket_s, marks)


def legend(layers: Sequence[Layer]) -> str:
    """Names and colours, for below a plot."""
    keys = (f'<span class="key"><i class="{layer.kind}"></i>{escape(layer.name)}</span>' for layer in layers)
    return f'<p class="legend">{"".join(keys)}</p>'


def linear_axis(highest: float) -> Axis:
    """From 0 to a round number above the highest value."""
    rough = max(highest, 1.0) / _TICKS_COUNT
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    count = math.ceil(max(highest, 1.0) / step)
    return Axis([step * tick for tick in range(count + 1)], 0.0, step * count, logarithmic=False)


def logarithmic_axis(lowest: float, highest: float) -> Axis:
    """Powers of ten around the values, at least one decade."""
    first = math.floor(math.log10(lowest))
    last = max(first + 1, math.ceil(math.log10(highest)))
    ticks = [10.0**power for power in range(first, last + 1)]
    return Axis(ticks, ticks[0], ticks[-1], logarithmic=True)


def _frame(title: str, inner: str, axis: Axis, length_s: float, marks: Sequence[Mark]) -> str:
    grid = "".join(_grid_line(axis.y(tick), short(tick)) for tick in axis.ticks)
    step_s = _time_step(length_s)
    times = "".join(
        f'<text class="tick" x="{_x_of(place * step_s, length_s):.1f}" y="{HEIGHT - 10}" '
        f'text-anchor="middle">{place * step_s:g} s</text>'
        for place in range(int(length_s / step_s) + 1)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{grid}{inner}{times}{''.join(_marks(marks, length_s))}</svg>"
    )


def _marks(marks: Sequence[Mark], length_s: float) -> Iterator[str]:
    label_end, low = 0.0, False
    for mark in sorted(marks)[:_MARKS_MAX_COUNT]:
        x = _x_of(min(max(mark.at_s, 0.0), length_s), length_s)
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{HEIGHT - _BOTTOM}"/>'
        low = not low and x < label_end  # the next row, where this label would run into the one before
        anchor = "end" if x > WIDTH * 0.8 else "start"
        place = f'x="{x + (4 if low else 0):.1f}" y="{_TOP + 4 if low else _TOP - 12}"'
        yield f'<text class="marked" {place} text-anchor="{anchor}">{escape(mark.says)}</text>'
        label_end = max(label_end, x + _CHARACTER * len(mark.says))


def _grid_line(y: float, says: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{says}</text>'
    )


def _dot(layer: Layer, point: tuple[float, float]) -> str:
    x, y = point
    return f'<circle class="dot {layer.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2">{_named(layer)}</circle>'


def _polyline(layer: Layer, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="line {layer.kind}" points="{_text(points)}">{_named(layer)}</polyline>'


def _steps(tops: Sequence[float], axis: Axis, count: int) -> Iterator[tuple[float, float]]:
    for place, value in enumerate(tops):
        y = axis.y(value)
        yield _x(place, count), y
        yield _x(place + 1, count), y


def _pieces(values: Sequence[float | None]) -> Iterator[list[tuple[int, float]]]:
    piece: list[tuple[int, float]] = []
    for place, value in enumerate(values):
        if value is not None:
            piece.append((place, value))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _x(place: float, count: int) -> float:
    return _LEFT + place / count * (WIDTH - _LEFT - _RIGHT)


def _x_of(at_s: float, length_s: float) -> float:
    return _LEFT + at_s / length_s * (WIDTH - _LEFT - _RIGHT)


def _text(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _named(layer: Layer) -> str:
    return f"<title>{escape(layer.name)}</title>"


def _time_step(length_s: float) -> float:
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600)
    return next((step for step in steps if length_s / step <= _X_TICKS_COUNT), 7_200)


def short(value: float) -> str:
    """A number in few characters: 0.5, 12, 3k, 1.5M."""
    for limit, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
