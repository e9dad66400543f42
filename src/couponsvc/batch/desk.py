"""The desk: takes single grabs, sends them to the gate in batches, and sees each one answered.

While one decision is in flight the next batch collects; it leaves as soon as the gate is free,
without a timer, so that a lonely grab waits for nobody. A batch that is large enough leaves at
once, also while others are in flight: under a flood the loop may read thousands of requests before
it does anything else, and neither the gate nor what comes after it must wait for that. A grab
whose client went away is not cancelled half-way: its decision runs to its end.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Final, Protocol

import msgspec
import structlog

from couponsvc import limits
from couponsvc.batch import answering, metrics
from couponsvc.batch.pace import Pace
from couponsvc.batch.packing import pack
from couponsvc.batch.ticket import Tell, Ticket
from couponsvc.batch.waiting import Flight, LookUp, WaitingRoom
from couponsvc.gate.connection import GateClosed, ReplyLost, TakeDecision
from couponsvc.gate.grabbing import OUTCOME_OF, Decision
from couponsvc.support.kill_points import kill_point
from couponsvc.support.subscription import listen
from couponsvc.values import keys, wire
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab
from couponsvc.values.note import read_note
from couponsvc.values.outcome import Outcome

log = structlog.get_logger("desk")

_GRANTED: Final = ord(Outcome.GRANTED.value)
_BEFORE_DECISION: Final = kill_point("gate.before_decision")
_AFTER_DECISION: Final = kill_point("gate.after_decision")
_BEFORE_ANSWER: Final = kill_point("gate.before_answer")
LOST_FOR_S: Final = 0.5
"""How long after a lost reply a commit may still answer: longer than a drainer needs."""


class Gate(Protocol):
    """What decides a batch: see `gate.connection.GateConnection.decide`."""

    def decide(self, keys: Sequence[str], arguments: Sequence[bytes | int], take: TakeDecision) -> None:
        """Run one batch; `take` gets the decision, GateClosed (nothing decided) or ReplyLost."""
        ...


class Overloaded(Exception):
    """The desk is full; nothing was taken. Answer 503 `overloaded` at once."""


class Desk:
    """Batcher and waiting room of one API process for one shard."""

    def __init__(
        self, gate: Gate, look_up: LookUp, *, shard: int, confirm_wait_ms: int, backlog_max_count: int
    ) -> None:
        self.origin: Final = token_hex(8)
        """Names this process on its confirmation channel; new with every start."""
        self._gate: Final = gate
        self._shard: Final = shard
        self._backlog_max_count: Final = backlog_max_count
        self._queue: Final[deque[Ticket]] = deque()
        self._in_flight_count = 0
        self._leaving = False
        """Whether a batch leaves when the loop has read what it is reading."""
        self._batch_numbers: Final = count(1)
        self._room: Final = WaitingRoom(look_up, confirm_wait_ms)

    def hand_in(
        self, drop: Drop, grab: Grab, tell: Tell, *, confirm: bool = True, pace: Pace | None = None
    ) -> None:
        """Queue a grab; `tell` gets its final answer, later and once. `pace`: a limited partner's.

        Raises:
            Overloaded: too many wait already; `tell` will not be called.
        """
        if self.full:
            raise Overloaded
        self._queue.append(Ticket(drop, grab, tell, confirm=confirm, pace=pace))
        self._dispatch()

    def submit(self, drop: Drop, grab: Grab, *, confirm: bool = True) -> asyncio.Future[Answer]:
        """As `hand_in`, with a future that gets the answer; cancelling it cancels no decision.

        Raises:
            Overloaded: too many wait already.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def tell(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        self.hand_in(drop, grab, tell, confirm=confirm)
        return future

    @property
    def full(self) -> bool:
        """Whether a grab would be refused; to be asked before any work is put into one."""
        return (
            len(self._queue) >= limits.QUEUE_MAX_COUNT or self._room.waiting_count >= limits.WAITING_MAX_COUNT
        )

    @property
    def queued_count(self) -> int:
        """Grabs that wait for their decision."""
        return len(self._queue)

    @property
    def waiting_count(self) -> int:
        """Grabs in batches of which somebody waits for a decision or a commit."""
        return self._room.waiting_count

    async def run(self) -> None:
        """Sweep the waiting room until cancelled; then answer who is left."""
        try:
            await self._room.run()
        finally:
            while self._queue:
                self._queue.popleft().resolve(_closed("gate_unavailable"))

    def _dispatch(self) -> None:
        """Send a large batch now, and a smaller one soon where the gate is free."""
        if len(self._queue) >= limits.BATCH_READY_COUNT:
            if self._in_flight_count < limits.BATCHES_IN_FLIGHT_MAX_COUNT:
                self._send(self._take_batch())
        elif self._queue and not self._in_flight_count and not self._leaving:
            self._leaving = True
            asyncio.get_running_loop().call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        if self._queue and not self._in_flight_count:
            self._send(self._take_batch())

    def _take_batch(self) -> list[Ticket]:
        """Oldest first, at most BATCH_MAX_COUNT grabs of at most BATCH_DROPS_MAX_COUNT drops."""
        queue = self._queue
        if len(queue) <= limits.BATCH_DROPS_MAX_COUNT:
            batch = list(queue)
            queue.clear()
            return batch
        batch = []
        drops: set[tuple[int, int]] = set()
        while queue and len(batch) < limits.BATCH_MAX_COUNT:
            drops.add(queue[0].drop_key)
            if len(drops) > limits.BATCH_DROPS_MAX_COUNT:
                break
            batch.append(queue.popleft())
        return batch

    def _send(self, tickets: list[Ticket]) -> None:
        flight = Flight(next(self._batch_numbers), tickets)
        self._room.board(flight)
        self._in_flight_count += 1
        began = perf_counter()
        paces: Sequence[Pace] = ()
        taken = False

        def take(told: Decision | GateClosed | ReplyLost) -> None:
            nonlocal taken
            if taken:  # it was given up below, and the line had it all the same
                return
            taken = True
            self._in_flight_count -= 1
            if isinstance(told, Decision):
                metrics.decided(len(tickets), perf_counter() - began)
                if paces:
                    _tell_paces(paces, told.notes, began)
            self._read(flight, told)
            self._dispatch()

        try:
            key_names, arguments, paces = pack(
                tickets,
                shard=self._shard,
                origin=self.origin,
                batch_no=flight.batch_no,
                backlog_max_count=self._backlog_max_count,
            )
            _BEFORE_DECISION()
            self._gate.decide(key_names, arguments, take)
        except Exception as error:
            log.exception("a batch could not be sent")
            take(ReplyLost(type(error).__name__))

    def _read(self, flight: Flight, told: Decision | GateClosed | ReplyLost) -> None:
        if isinstance(told, GateClosed):
            self._room.leave(flight)
            _resolve_all(flight.tickets, _closed(told.problem))
        elif isinstance(told, ReplyLost):
            self._lose(flight)
        else:
            try:
                self._apply(flight, told)
            except Exception:
                log.exception("a decision could not be read", codes=len(told.codes))
                self._lose(flight)

    def _lose(self, flight: Flight) -> None:
        """Its grants, if any, are on the stream: whoever is committed soon is told so all the same."""
        flight.lost = flight.applied = True
        flight.own.extend(flight.tickets)

        def give_up() -> None:
            _resolve_all(flight.tickets, Answer(AnswerKind.LOST))
            self._room.leave(flight)

        asyncio.get_running_loop().call_later(LOST_FOR_S, give_up)

    def _apply(self, flight: Flight, decision: Decision) -> None:
        _AFTER_DECISION()
        room, own = self._room, flight.own
        notes = iter(decision.notes)
        for ticket, code in zip(flight.tickets, decision.codes, strict=True):
            if code == _GRANTED:
                if ticket.confirm:
                    own.append(ticket)
                else:
                    ticket.resolve(answering.PENDING)
                continue
            plain = answering.PLAIN.get(code)
            if plain is not None:
                ticket.resolve(plain)
                continue
            outcome = OUTCOME_OF[code]
            note = next(notes) if outcome.carries_note else b""
            answer = answering.of_outcome(outcome, note)
            if answer is not None:
                ticket.resolve(answer)
            elif not ticket.confirm and outcome is Outcome.REPEATED_PENDING:
                ticket.resolve(answering.PENDING)
            else:  # a retry of a pending grant, or another number of a person whose grant is pending
                number = read_note(note.decode()).out_request_no if note else ticket.grab.out_request_no
                room.follow(flight, ticket, number)
        flight.applied = True
        room.leave_if_answered(flight)
        metrics.count_outcomes(decision.codes)

    async def listen(self, redis_url: str) -> None:
        """Receive confirmations until cancelled. What is missed while disconnected is found by look-up."""
        await listen(redis_url, keys.confirm_channel(self._shard, self.origin), self._receive)

    def _receive(self, data: bytes) -> None:
        """Never raises: whoever is not told here is told by a look-up."""
        try:
            _BEFORE_ANSWER()
            self._room.confirm(wire.decode_confirmations(data))
        except (msgspec.MsgspecError, ValueError, IndexError) as error:
            log.warning("unreadable confirmation", error=str(error))
        except Exception:
            log.exception("a confirmation could not be handed on")


def _tell_paces(paces: Sequence[Pace], notes: Sequence[bytes], sent_s: float) -> None:
    for pace, ahead_us in zip(paces, notes[-len(paces) :], strict=True):
        pace.told(int(ahead_us), sent_s)


def _resolve_all(tickets: Sequence[Ticket], answer: Answer) -> None:
    for ticket in tickets:
        ticket.resolve(answer)


def _closed(problem: str) -> Answer:
    return Answer(AnswerKind.CLOSED, reason=problem)
