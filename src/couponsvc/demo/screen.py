"""What the demo shows: live where there is a terminal, plain lines where there is none."""

import time
from collections import Counter
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_EVERY_S: Final = 2.0
"""Without a terminal: often enough to see that it lives."""


class Screen:
    """Progress of a rush; a context, because a live display has to be put away."""

    def __init__(self, console: Console) -> None:
        self.console: Final = console
        self._live: Live | None = None
        self._last_line_s = 0.0
        self._rate = _Rate()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(
        self, since_opening_s: float, drops: list[dict[str, Any]], requests_count: int, outcomes: Counter[str]
    ) -> None:
        """Show how far the rush is; `drops` as `GET /v1/drops/{drop_id}` answered."""
        rate = self._rate.of(requests_count)
        clock = (
            f"opens in {-since_opening_s:.1f} s"
            if since_opening_s < 0
            else f"open for {since_opening_s:.1f} s"
        )
        if self._live is not None:
            self._live.update(_panel(clock, drops, requests_count, rate, outcomes))
        elif time.monotonic() - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            stock = ", ".join(f"{drop['drop_id']} {drop['available']:,} left" for drop in drops)
            self.say(f"{clock}: {stock}; {requests_count:,} requests, {rate:,.0f}/s; {_told(outcomes)}")


def _panel(
    clock: str, drops: list[dict[str, Any]], requests_count: int, rate: float, outcomes: Counter[str]
) -> Group:
    stock = Table.grid(padding=(0, 2))
    for drop in drops:
        stock.add_row(
            drop["drop_id"],
            ProgressBar(total=drop["quantity"], completed=drop["issued"], width=30),
            f"{drop['available']:>7,} left",
            f"{drop['pending']:>5,} pending",
            f"{drop['issued']:>7,} issued",
            drop["state"],
        )
    return Group(
        Text(clock, style="bold"),
        stock,
        Text(f"{requests_count:,} requests, {rate:,.0f}/s"),
        Text(_told(outcomes)),
    )


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.most_common(8))


class _Rate:
    """Requests per second between two looks at least half a second apart."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._count = 0
        self._rate = 0.0

    def of(self, count: int) -> float:
        now_s = time.monotonic()
        if now_s - self._at_s >= 0.5:  # noqa: PLR2004 - see the class
            self._rate = (count - self._count) / (now_s - self._at_s)
            self._at_s, self._count = now_s, count
        return self._rate
