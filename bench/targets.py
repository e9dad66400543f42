"""What a target comes to: a measured value, what it should be, and whether it is.

Rows are compared in `bench.ratios`; what needs millions of vouchers or thousands of drops is measured by
`bench.scale`, whose entry is `async def run(say: Say) -> list[TargetResult]`.
"""

from collections.abc import Callable
from typing import NamedTuple

Say = Callable[[str], None]
"""Takes one line of progress."""


class TargetResult(NamedTuple):
    """One line of the targets table.

    Attributes:
        name: What is compared, e.g. `confirmed, signed : the usual service`.
        value: As measured in this run; a ratio unless `unit` says otherwise.
        target: What it should be at least or at most.
        at_least: Is more better?
        unit: `µs`, `bytes` …; "" for a plain ratio.
        detail: The figures it was made from, short.
    """

    name: str
    value: float
    target: float
    at_least: bool
    unit: str
    detail: str

    @property
    def met(self) -> bool:
        """Does the value reach the target?"""
        return self.value >= self.target if self.at_least else self.value <= self.target
