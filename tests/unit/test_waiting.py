"""Who waits for whose commit: followers of another grab's grant, and when a batch is forgotten."""

import asyncio
from collections.abc import Mapping, Sequence

from structlog.testing import capture_logs

from couponsvc import limits
from couponsvc.batch.ticket import Ticket
from couponsvc.batch.waiting import Flight, RequestKey, WaitingRoom, _Wait
from couponsvc.values import wire
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms
from couponsvc.values.grab import Grab
from couponsvc.values.outcome import Verdict
from couponsvc.values.voucher import StandingVoucher

TERMS = VoucherTerms(2000, 6000, 3_600_000)
DROP = Drop(7, "d", "p", "t", "", 0, 1, 1, DropStatus.ACTIVE, 10, 1, 0, 1, TERMS, frozenset({1}))


class Waiter(Ticket):
    """A ticket whose answer can be awaited."""

    def __init__(self, number: str, person: str) -> None:
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        super().__init__(DROP, Grab(7, f"1:{person}", number, "", ""), self.future.set_result, confirm=True)


def ticket(number: str, person: str = "p-1") -> Waiter:
    return Waiter(number, person)


def room(*standing: StandingVoucher) -> WaitingRoom:
    """A waiting room over a ledger of these vouchers."""

    async def look_up(requests: Sequence[RequestKey]) -> Mapping[RequestKey, StandingVoucher]:
        return {key: v for v in standing if (key := (v.partner_no, v.out_request_no)) in requests}

    return WaitingRoom(look_up, limits.CONFIRM_WAIT_MS)


def decided(batch_no: int, *tickets: Ticket) -> Flight:
    flight = Flight(batch_no, tickets)
    flight.applied = True
    return flight


def voucher(number: str, person: str) -> StandingVoucher:
    return StandingVoucher(7, 3, 1, 1, 1_790_000_000_000, person, number, "ABCDEFGHJKLMN", "", "")


async def answered_by_look_up(waiting: WaitingRoom, waiter: Waiter) -> AnswerKind:
    await asyncio.sleep(limits.LOOKUP_AFTER_MS[0] / 1000)
    waiting.sweep()
    return (await asyncio.wait_for(waiter.future, 1)).kind


async def test_a_follower_is_decided_anew_where_the_number_it_waited_for_stands_for_another_person() -> None:
    waiting, second = room(voucher("n-1", "somebody-else")), ticket("n-2")
    flight = decided(1, second)
    waiting.board(flight)
    waiting.follow(flight, second, "n-1")
    assert await answered_by_look_up(waiting, second) is AnswerKind.AGAIN


async def test_a_retry_whose_own_number_stands_for_another_person_is_a_mismatch() -> None:
    waiting, retry = room(voucher("n-1", "somebody-else")), ticket("n-1")
    flight = decided(1, retry)
    waiting.board(flight)
    waiting.follow(flight, retry, "n-1")
    assert await answered_by_look_up(waiting, retry) is AnswerKind.MISMATCH


async def test_a_follower_is_told_of_the_persons_voucher_by_look_up() -> None:
    waiting, second = room(voucher("n-1", "p-1")), ticket("n-2")
    flight = decided(1, second)
    waiting.board(flight)
    waiting.follow(flight, second, "n-1")
    assert await answered_by_look_up(waiting, second) is AnswerKind.PERSON_LIMIT


async def test_a_batch_whose_followers_another_batch_answered_is_forgotten_at_the_next_sweep() -> None:
    waiting, first, second = room(), ticket("n-1"), ticket("n-2")
    made, followed = decided(1, first), decided(2, second)
    for flight in (made, followed):
        waiting.board(flight)
    made.own.append(first)
    waiting.follow(followed, second, "n-1")
    confirmation = wire.Confirmation(0, int(Verdict.COMMITTED), 3, 1_790_000_000_000, "C", "n-1")
    waiting.confirm(wire.ConfirmationBatch(1, 1, [confirmation]))
    assert (first.future.result().kind, second.future.result().kind) == (
        AnswerKind.CONFIRMED,
        AnswerKind.PERSON_LIMIT,
    )
    waiting.sweep()
    assert waiting.waiting_count == 0


async def test_a_follower_of_a_grant_that_fell_away_is_decided_anew() -> None:
    waiting, first, second = room(), ticket("n-1"), ticket("n-2")
    flight = decided(1, first, second)
    waiting.board(flight)
    flight.own.append(first)
    waiting.follow(flight, second, "n-1")
    confirmation = wire.Confirmation(0, int(Verdict.MISMATCH), 0, 0, "", "")
    waiting.confirm(wire.ConfirmationBatch(1, 1, [confirmation]))
    assert first.future.result().kind is AnswerKind.MISMATCH
    assert second.future.result().kind is AnswerKind.AGAIN
    assert waiting.waiting_count == 0


async def test_a_postgres_that_is_away_is_told_once_and_its_return_once() -> None:
    away = True

    async def look_up(_: Sequence[RequestKey]) -> Mapping[RequestKey, StandingVoucher]:
        if away:
            raise ConnectionRefusedError
        return {}

    waiting, waiter = WaitingRoom(look_up, limits.CONFIRM_WAIT_MS), ticket("n-1")
    flight = decided(1, waiter)
    waiting.board(flight)
    flight.waits.append(_Wait(waiter, "n-1"))
    with capture_logs() as told:
        for _ in range(3):
            await waiting._look_up_and_answer(flight.waits)  # noqa: SLF001 - otherwise this lasts seconds
        away = False
        for _ in range(3):
            await waiting._look_up_and_answer(flight.waits)  # noqa: SLF001 - as above
    assert [line["log_level"] for line in told] == ["warning", "info"]
