"""One grab on its way through batcher and waiter."""

from collections.abc import Callable
from typing import Final

from couponsvc.batch.pace import Pace
from couponsvc.values.answer import Answer
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab

Tell = Callable[[Answer], None]
"""Takes the final answer. Called once, from the desk's loop, so it neither waits nor raises."""


class Ticket:
    """A grab with whom to tell its answer. Told exactly once; later news are ignored."""

    __slots__ = ("_tell", "answered", "confirm", "drop_key", "grab", "pace")

    def __init__(
        self, drop: Drop, grab: Grab, tell: Tell, *, confirm: bool, pace: Pace | None = None
    ) -> None:
        self.drop_key: Final = (drop.drop_no, drop.epoch)
        self.grab: Final = grab
        self.confirm: Final = confirm
        """Whether the caller wants to wait for the commit."""
        self.pace: Final = pace
        """Of the partner, where it is limited."""
        self.answered = False
        self._tell: Final = tell

    def resolve(self, answer: Answer) -> None:
        """Answer, unless it was answered."""
        if not self.answered:
            self.answered = True
            self._tell(answer)
