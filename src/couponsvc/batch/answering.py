"""From what gate and ledger say to what a grab is told: total tables, no decisions elsewhere."""

from typing import Final, assert_never

from couponsvc.batch.ticket import Ticket
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.note import Note, read_note
from couponsvc.values.outcome import Outcome, Verdict
from couponsvc.values.wire import Confirmation

PENDING = Answer(AnswerKind.PENDING)
AGAIN = Answer(AnswerKind.AGAIN)
PLAIN: Final[dict[int, Answer]] = {
    ord(outcome.value): Answer(kind)
    for outcome, kind in (
        (Outcome.FENCED, AnswerKind.AGAIN),
        (Outcome.RATE_LIMITED, AnswerKind.RATE_LIMITED),
        (Outcome.PAUSED, AnswerKind.PAUSED),
        (Outcome.SOLD_OUT_PENDING, AnswerKind.SOLD_OUT_PENDING),
        (Outcome.SOLD_OUT, AnswerKind.SOLD_OUT),
        (Outcome.OVERLOADED, AnswerKind.OVERLOADED),
    )
}
"""By the gate's byte, answers that are the same for everybody: most of a sold-out rush."""
_COMMITTED = int(Verdict.COMMITTED)


def of_outcome(outcome: Outcome, note: bytes) -> Answer | None:
    """What the gate alone can answer; None where the ledger has to be waited for."""
    match outcome:
        case Outcome.GRANTED | Outcome.REPEATED_PENDING:
            return None
        case Outcome.REPEATED:
            return with_voucher(AnswerKind.REPEATED, read_note(note.decode()))
        case Outcome.PERSON_LIMIT:
            held = read_note(note.decode())
            return with_voucher(AnswerKind.PERSON_LIMIT, held) if held.committed else None
        case Outcome.NOT_STARTED:
            return Answer(AnswerKind.NOT_STARTED, moment_ms=int(note))
        case Outcome.ENDED:
            return Answer(AnswerKind.ENDED, moment_ms=int(note))
        case (
            Outcome.FENCED
            | Outcome.RATE_LIMITED
            | Outcome.PAUSED
            | Outcome.SOLD_OUT_PENDING
            | Outcome.SOLD_OUT
            | Outcome.OVERLOADED
        ):
            return PLAIN[ord(outcome.value)]
        case _:
            assert_never(outcome)


def with_voucher(kind: AnswerKind, note: Note) -> Answer:
    """An answer that carries the committed voucher of a note."""
    return Answer(kind, note.seq, note.issued_ms, note.code, note.out_request_no)


def of_confirmation(confirmation: Confirmation) -> Answer:
    """What the ledger's verdict on a grant means for the grab that made it."""
    _, code, seq, issued_ms, till_code, out_request_no = confirmation
    if code == _COMMITTED:  # nearly always, and on the hot path
        return Answer(AnswerKind.CONFIRMED, seq, issued_ms, till_code, out_request_no)
    verdict = Verdict(code)
    match verdict:
        case Verdict.COMMITTED:
            raise AssertionError("answered above")
        case Verdict.HELD:
            return Answer(AnswerKind.PERSON_LIMIT, seq, issued_ms, till_code, out_request_no)
        case Verdict.MISMATCH:
            return Answer(AnswerKind.MISMATCH)
        case Verdict.EXCEEDED:
            return Answer(AnswerKind.SOLD_OUT)
        case Verdict.STALE:
            return AGAIN
        case _:
            assert_never(verdict)


def of_followed(ticket: Ticket, followed: Answer) -> Answer:
    """What a grab is told that waited for another one's grant: its own retry, or the person's voucher.

    Where the followed grant fell away nothing stands in the way any more: decide again.
    """
    if followed.kind is not AnswerKind.CONFIRMED:
        return AGAIN
    own = followed.out_request_no == ticket.grab.out_request_no
    return followed._replace(kind=AnswerKind.REPEATED if own else AnswerKind.PERSON_LIMIT)
