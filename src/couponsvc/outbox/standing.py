"""How a drop stands after each event that tells of it. Pure: no input, no output.

Postgres says how it stands now; the rows of a turn say how it came there. So each event says what was
so at its place, and the last one what `GET /v1/drops/{drop_id}` answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from couponsvc.values.drop import DropState, DropStatus
from couponsvc.values.event import EventType

Change = tuple[EventType, Mapping[str, Any]]
"""Kind and data of a row that tells of a drop."""

_STATUS_AFTER: Final = {
    EventType.DROP_PAUSED: DropStatus.PAUSED,
    EventType.DROP_RESUMED: DropStatus.ACTIVE,
    EventType.DROP_CLOSED: DropStatus.CLOSED,
}
_STATUS_BEFORE: Final = {
    EventType.DROP_PAUSED: DropStatus.ACTIVE,
    EventType.DROP_RESUMED: DropStatus.PAUSED,
    EventType.DROP_CLOSED: DropStatus.ACTIVE,
}
"""A closed drop may have been paused: then that has told so before."""


@dataclass(slots=True)
class Standing:
    """What operators decided of a drop, at one place between its events."""

    status: DropStatus
    quantity: int

    @classmethod
    def before(cls, changes: Sequence[Change], status: DropStatus, quantity: int) -> Self:
        """How a drop stood before changes after which it stands like this."""
        for kind, data in reversed(changes):
            status = _STATUS_BEFORE.get(kind, status)
            quantity = data.get("quantity", quantity) - data.get("added", 0)
        return cls(status, quantity)

    def follow(self, kind: EventType, data: Mapping[str, Any]) -> None:
        """A change is told."""
        self.status = _STATUS_AFTER.get(kind, self.status)
        self.quantity = data.get("quantity", self.quantity)

    def state(self, *, told_seq: int, opened: bool, ended: bool) -> DropState:
        """In the order of precedence of `GET`.

        Args:
            told_seq: how many vouchers partners were told of; all of a drop is sold when they know of all.
            opened: they were told that its window has opened.
            ended: and that it has ended.
        """
        if self.status is DropStatus.CLOSED:
            return DropState.CLOSED
        if self.status is DropStatus.PAUSED:
            return DropState.PAUSED
        if ended:
            return DropState.ENDED
        if not opened:
            return DropState.SCHEDULED
        return DropState.SOLD_OUT if told_seq >= self.quantity else DropState.OPEN
