"""The desk answers every grab it took, also those that it could not even send."""

import asyncio

from couponsvc.batch.desk import Desk
from couponsvc.gate.connection import GateConnection
from couponsvc.values.answer import AnswerKind
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms
from couponsvc.values.grab import Grab

TERMS = VoucherTerms(2000, 6000, 3_600_000)
DROP = Drop(7, "d", "p", "t", "", 0, 1, 1, DropStatus.ACTIVE, 10, 1, 0, 1, TERMS, frozenset({1}))
UNSENDABLE = "\ud800"
"""Half a character, which no encoder takes; the lane refuses it long before the desk."""


async def nothing_read(*_: object) -> None:
    return None


async def test_grabs_that_cannot_be_packed_are_answered_and_the_next_ones_are_decided() -> None:
    gate = GateConnection("redis://127.0.0.1:1/0", nothing_read)  # never opened: it says so at once
    desk = Desk(gate, lambda _: asyncio.sleep(0, {}), shard=0, confirm_wait_ms=50, backlog_max_count=10)
    async with asyncio.timeout(5):
        unsendable = desk.submit(DROP, Grab(7, "1:p-1", UNSENDABLE, "", ""))
        assert (await unsendable).kind is AnswerKind.LOST
        assert (await desk.submit(DROP, Grab(7, "1:p-2", "n-2", "", ""))).kind is AnswerKind.CLOSED
