"""Which quantity a drop may have had at a time, as far as operators and their answers tell."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.faults.harness.checker.evidence import NEVER_NS, Evidence
from tests.faults.harness.final import FinalDrop

ANY: Final = 2**31
"""More than a drop can have: nobody told how many."""


class _Value(NamedTuple):
    """A quantity, and from when to when it may have been the one in force."""

    low: int
    high: int
    from_ns: int
    until_ns: int


class Quantities:
    """The quantities that one drop may have had.

    A value is possible from when it was asked for. It is over when a later change was answered as
    done: a change that began after this one's end, so that the two cannot have happened in the other
    order. Where a fault was near, a server that was left behind may go on with the older value until
    that trouble is over. A change without an answer may happen at any time later.
    """

    def __init__(self, evidence: Evidence, drop: FinalDrop) -> None:
        self._values: Final = _values(evidence, drop)

    def lowest(self, began_ns: int, ended_ns: int) -> int:
        """The smallest one that may have been in force at some time in between."""
        return min(value.low for value in self._between(began_ns, ended_ns))

    def highest(self, began_ns: int, ended_ns: int) -> int:
        """The largest one."""
        return max(value.high for value in self._between(began_ns, ended_ns))

    def may_grow(self, from_ns: int) -> bool:
        """Whether units may be added after this moment."""
        return self.highest(from_ns, NEVER_NS) > self.lowest(from_ns, from_ns)

    def _between(self, began_ns: int, ended_ns: int) -> Sequence[_Value]:
        found = [value for value in self._values if value.from_ns <= ended_ns and value.until_ns >= began_ns]
        assert found, "a drop always has a quantity"
        return found


def _values(evidence: Evidence, drop: FinalDrop) -> list[_Value]:
    asked = [operation for operation in evidence.operations[drop.drop_id] if operation.ok is not False]
    changes = [operation for operation in asked if operation.what in ("define", "restock", "lower")]
    if not changes:
        return [_Value(drop.quantity, drop.quantity, -NEVER_NS, NEVER_NS)]
    done = [change for change in changes if change.ok]

    def over_ns(after_ns: int) -> int:
        ends = [evidence.settled_ns(c.began_ns, c.ended_ns) for c in done if c.began_ns >= after_ns]
        return min(ends, default=NEVER_NS)

    values = []
    if changes[0].what != "define":
        values.append(_Value(0, ANY, -NEVER_NS, over_ns(-NEVER_NS)))
    for index, change in enumerate(changes):
        first = index == 0 and change.what == "define"
        until_ns = over_ns(change.ended_ns) if change.ok else NEVER_NS
        from_ns = -NEVER_NS if first else change.began_ns
        values.append(_Value(change.quantity_after, change.quantity_after, from_ns, until_ns))
    return values
