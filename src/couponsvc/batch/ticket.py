"""One grab on its way through batcher and waiter."""

import asyncio
from typing import Final

from couponsvc.values.answer import Answer
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab


class Ticket:
    """A grab with the future of its answer. Resolved exactly once; later news are ignored."""

    __slots__ = ("confirm", "drop_key", "future", "grab")

    def __init__(self, drop: Drop, grab: Grab, future: asyncio.Future[Answer], *, confirm: bool) -> None:
        self.drop_key: Final = (drop.drop_no, drop.epoch)
        self.grab: Final = grab
        self.future: Final = future
        self.confirm: Final = confirm
        """Whether the caller wants to wait for the commit."""

    def resolve(self, answer: Answer) -> None:
        """Answer, unless it was answered or its caller has gone."""
        if not self.future.done():
            self.future.set_result(answer)
