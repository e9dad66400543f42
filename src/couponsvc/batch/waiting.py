"""Who waits for which commit, and how each of them learns of it.

Three ways, in order of speed: the drainer's confirmation, addressed by batch and place; for a
grab that follows another one's grant (a retry, or a second number of the same person), that
grant's own confirmation; and, where a message was lost or another process made the grant, a
look-up in Postgres at the ages of `limits.LOOKUP_AFTER_MS`, for everybody who is due at once.
Past `confirm_wait_ms` the answer is PENDING: the grant stands, only its commit was not seen.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Final, NamedTuple

import structlog

from couponsvc import limits
from couponsvc.batch import answering
from couponsvc.batch.ticket import Ticket
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.grab import split_holder
from couponsvc.values.voucher import StandingVoucher
from couponsvc.values.wire import ConfirmationBatch

log = structlog.get_logger("waiting")


RequestKey = tuple[int, str]
"""`(partner_no, out_request_no)`: what makes a request unique."""
LookUp = Callable[[Sequence[RequestKey]], Awaitable[Mapping[RequestKey, StandingVoucher]]]
"""Reads committed vouchers by request from Postgres."""

_GrantKey = tuple[int, str, str]
"""`(drop_no, holder, out_request_no)`: names a grant."""


class _Wait(NamedTuple):
    """A ticket waiting for a grant of the same person and drop, made under `number`."""

    ticket: Ticket
    number: str
    own: bool = False
    """Whether the ticket made that grant itself: then the answer is CONFIRMED, else REPEATED."""


class Flight:
    """The tickets of one batch; lives until each of its grants is answered or overdue."""

    __slots__ = ("applied", "batch_no", "born", "lookup_count", "lost", "own", "tickets", "waits")

    def __init__(self, batch_no: int, tickets: Sequence[Ticket]) -> None:
        self.batch_no: Final = batch_no
        self.tickets: Final = tickets
        self.born: Final = monotonic()
        self.own: list[Ticket] = []
        """Tickets that wait for the commit of their own grant."""
        self.waits: list[_Wait] = []
        """Tickets that wait for a grant which another ticket made."""
        self.lookup_count = 0
        self.applied = False
        """The gate's reply was read: `waits` is complete."""
        self.lost = False
        """The gate's reply was lost: a ticket without commit is told so, not PENDING."""


class WaitingRoom:
    """All grants of this process whose commit was not seen yet."""

    def __init__(self, look_up: LookUp, confirm_wait_ms: int) -> None:
        self._look_up: Final = look_up
        self._confirm_wait_s: Final = confirm_wait_ms / 1000
        self._flights: Final[dict[int, Flight]] = {}
        self._followers: Final[dict[_GrantKey, list[_Wait]]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._in_the_dark = False
        """The last look-up failed."""
        self.waiting_count = 0

    def board(self, flight: Flight) -> None:
        """Make a batch known before it is sent: its confirmation may overtake the gate's reply."""
        self._flights[flight.batch_no] = flight
        self.waiting_count += len(flight.tickets)

    def leave(self, flight: Flight) -> None:
        """Forget a batch that granted nothing, or whose grants are all answered."""
        if self._flights.pop(flight.batch_no, None) is not None:
            self.waiting_count -= len(flight.tickets)

    def leave_if_answered(self, flight: Flight) -> None:
        """Forget a decided batch once nobody in it waits any more."""
        if flight.applied and not any(_unanswered(flight)):
            self.leave(flight)

    def follow(self, flight: Flight, ticket: Ticket, number: str) -> None:
        """Wait for a grant that another ticket made under `number` for the same person and drop."""
        wait = _Wait(ticket, number)
        flight.waits.append(wait)
        self._followers.setdefault((ticket.grab.drop_no, ticket.grab.holder, number), []).append(wait)

    def confirm(self, message: ConfirmationBatch) -> None:
        """Hand the ledger's verdicts to those who wait for them."""
        flight = self._flights.get(message.batch_no)
        if flight is None:
            return  # answered PENDING or by look-up before
        tickets = flight.tickets
        for confirmation in message.confirmations:
            ticket = tickets[confirmation.place]
            answer = answering.of_confirmation(confirmation)
            ticket.resolve(answer)
            if self._followers:
                self._tell_followers(ticket, answer)
        self.leave_if_answered(flight)

    def _tell_followers(self, ticket: Ticket, answer: Answer) -> None:
        grab = ticket.grab
        for wait in self._followers.pop((grab.drop_no, grab.holder, grab.out_request_no), ()):
            wait.ticket.resolve(answering.of_followed(wait.ticket, answer))

    def sweep(self) -> None:
        """Start a look-up for who is due and answer who is overdue. One pass; `run` repeats it."""
        now = monotonic()
        due: list[_Wait] = []
        looking = self._looking is not None and not self._looking.done()
        for flight in list(self._flights.values()):
            age_s = now - flight.born
            if age_s >= self._confirm_wait_s and flight.applied:
                for wait in _unanswered(flight):
                    wait.ticket.resolve(_overdue(wait, flight))
                self.leave(flight)
            elif not looking and _lookup_due(flight, age_s * 1000):
                flight.lookup_count += 1
                due += _unanswered(flight)
            # By look-up, or by another batch's confirmation, its last one may have been answered.
            self.leave_if_answered(flight)
        if due:
            self._looking = asyncio.create_task(self._look_up_and_answer(due), name="look-up")
        self._forget_answered_followers()

    async def _look_up_and_answer(self, waits: Sequence[_Wait]) -> None:
        wanted = {(wait.ticket.grab.partner_no, wait.number) for wait in waits}
        try:
            found = await asyncio.wait_for(self._look_up(list(wanted)), limits.LOOKUP_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - Postgres away: whoever is overdue is told PENDING
            # Told once: it is tried forty times a second, for as long as that lasts.
            if not self._in_the_dark:
                self._in_the_dark = True
                log.warning("waiting grants are not looked up", error=type(error).__name__)
            return
        if self._in_the_dark:
            self._in_the_dark = False
            log.info("waiting grants are looked up again")
        for wait in waits:
            standing = found.get((wait.ticket.grab.partner_no, wait.number))
            if standing is not None:
                wait.ticket.resolve(_of_standing(wait, standing))

    def _forget_answered_followers(self) -> None:
        for key, waits in list(self._followers.items()):
            if all(wait.ticket.answered for wait in waits):
                del self._followers[key]

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(limits.SWEEP_EVERY_MS / 1000)
            if self._flights:
                self.sweep()


def _unanswered(flight: Flight) -> Iterator[_Wait]:
    for ticket in flight.own:
        if not ticket.answered:
            yield _Wait(ticket, ticket.grab.out_request_no, own=True)
    for wait in flight.waits:
        if not wait.ticket.answered:
            yield wait


def _lookup_due(flight: Flight, age_ms: float) -> bool:
    done = flight.lookup_count
    return done < len(limits.LOOKUP_AFTER_MS) and age_ms >= limits.LOOKUP_AFTER_MS[done]


def _of_standing(wait: _Wait, standing: StandingVoucher) -> Answer:
    grab = wait.ticket.grab
    _, person_token = split_holder(grab.holder)
    if (standing.drop_no, standing.person_token) != (grab.drop_no, person_token):
        # The number waited for was used otherwise. If it is the ticket's own, that is its answer;
        # if it is the person's other one, that grant falls away and nothing stands in the way.
        own_number = wait.number == grab.out_request_no
        return Answer(AnswerKind.MISMATCH) if own_number else answering.AGAIN
    answer = Answer(
        AnswerKind.CONFIRMED, standing.seq, standing.issued_ms, standing.code, standing.out_request_no
    )
    return answer if wait.own else answering.of_followed(wait.ticket, answer)


def _overdue(wait: _Wait, flight: Flight) -> Answer:
    if flight.lost:
        return Answer(AnswerKind.LOST)
    if wait.number != wait.ticket.grab.out_request_no:
        return Answer(AnswerKind.PERSON_LIMIT)
    return answering.PENDING
