"""One line of what was measured."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A figure, and the target that it has, if any.

    Attributes:
        name: What was measured.
        value: As measured in this run.
        unit: `/s`, `ms`, `µs` …; "" for a plain ratio.
        detail: The figures it was made from, short.
        at_least: The target, where more is better.
        at_most: The target, where less is better.
    """

    name: str
    value: float
    unit: str
    detail: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, or nothing where there is no target."""
        if self.at_least is not None:
            return "met" if self.value >= self.at_least else "MISSED"
        if self.at_most is not None:
            return "met" if self.value <= self.at_most else "MISSED"
        return ""

    def line(self) -> str:
        """For people."""
        bound = "" if self.at_least is None else f" (≥ {self.at_least:g})"
        bound = bound if self.at_most is None else f" (≤ {self.at_most:g})"
        return (
            f"{self.verdict:6} {self.value:10,.2f} {self.unit:4}{bound:9}  {self.name}\n       {self.detail}"
        )
