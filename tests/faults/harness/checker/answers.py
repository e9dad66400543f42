"""Rules about answers: what was confirmed stands for ever, and one number has one answer."""

from collections.abc import Sequence
from typing import Final

from couponsvc.values.voucher import voucher_id
from tests.faults.harness.checker.evidence import (
    CLOCK_TOLERANCE_MS,
    CONFIRMED,
    Evidence,
    Key,
    refuses,
)
from tests.faults.harness.checker.quantities import Quantities
from tests.faults.harness.checker.rulebook import Broken, Cases, rule
from tests.faults.harness.history import GRAB, Call

CONTRADICTS: Final = frozenset({404, 409})
"""What nobody may be answered whose number was answered with a voucher before."""


@rule("confirmed_stands")
def confirmed_stands(evidence: Evidence) -> Cases:
    """A voucher is shown only after its commit, and the ledger, which was read later, never shrinks."""
    for call, voucher, row in evidence.shown:
        if voucher is None:
            yield Broken(f"the body of a {call.status} is no voucher", [call])
        elif row is None or (row.drop_id, row.seq, row.code) != (voucher.drop_id, voucher.seq, voucher.code):
            standing = "nothing" if row is None else f"number {row.seq} of {row.drop_id}"
            yield Broken(f"{voucher.voucher_id} was told; under its number the ledger has {standing}", [call])
        else:
            yield None


@rule("confirmed_for_ever")
def confirmed_for_ever(evidence: Evidence) -> Cases:
    """Every answer that shows the voucher of a number shows the same bytes."""
    first: dict[tuple[str, str], Call] = {}
    for call, voucher, _ in evidence.shown:
        if voucher is not None:
            before = first.setdefault((call.partner_id, voucher.out_request_no), call)
            yield None if before.body == call.body else Broken("two vouchers for one number", [before, call])


@rule("told_only_what_was_committed")
def told_only_what_was_committed(evidence: Evidence) -> Cases:
    """A voucher is told as it was committed, and not before."""
    for call, voucher, row in evidence.shown:
        if voucher is None or row is None:
            continue  # another rule's
        early_ms = row.issued_ms - evidence.wall_ms(call.ended_ns)
        if row.receipt != call.body:
            yield Broken(f"told otherwise than committed: {row.receipt.decode()}", [call])
        elif early_ms > CLOCK_TOLERANCE_MS:
            yield Broken(f"told {early_ms:.0f} ms before it was committed", [call])
        else:
            yield None


@rule("right_person")
def right_person(evidence: Evidence) -> Cases:
    """No answer names another person, another partner's voucher, another drop or another number."""
    rows = {(row.drop_id, row.seq): row for row in evidence.final.vouchers}
    for call, voucher, _ in evidence.shown:
        if voucher is None:
            continue
        owner = rows.get((voucher.drop_id, voucher.seq))
        own_number = voucher.out_request_no == call.out_request_no
        number = evidence.drops[call.drop_id].drop_no
        if (voucher.drop_id, voucher.voucher_id) != (call.drop_id, voucher_id(number, voucher.seq)):
            yield Broken(f"{voucher.voucher_id} is of another drop", [call])
        elif voucher.person_token != call.person_token:
            yield Broken(f"{voucher.voucher_id} is another person's", [call])
        elif owner and (owner.partner_id, owner.person_token) != (call.partner_id, call.person_token):
            yield Broken(f"{voucher.voucher_id} is {owner.person_token}'s of {owner.partner_id}", [call])
        elif own_number is not (call.status in CONFIRMED):
            yield Broken(f"{voucher.voucher_id} was granted under {voucher.out_request_no}", [call])
        else:
            yield None


@rule("one_number_one_answer")
def one_number_one_answer(evidence: Evidence) -> Cases:
    """A number is granted or it is refused; what an unanswered call did may be either, never both."""
    quantities = {drop_id: Quantities(evidence, drop) for drop_id, drop in evidence.drops.items()}
    for key, calls in evidence.by_key.items():
        standing = evidence.row_of(key) is not None
        yield _refused_after_voucher(calls)
        if standing:
            yield _refused_for_good(evidence, quantities[key.drop_id], calls)
            yield _refused_only(calls)
        yield _mismatch_without_reason(evidence, key, calls)


def _refused_after_voucher(calls: Sequence[Call]) -> Broken | None:
    """A standing voucher answers its number before every other rule, paused and ended included."""
    told = min((call for call in calls if call.status in CONFIRMED), key=lambda c: c.ended_ns, default=None)
    for call in calls if told else ():
        if told and call.status in CONTRADICTS and call.began_ns > told.ended_ns:
            return Broken(f"{call.code} after a voucher had been answered", [told, call])
    return None


def _refused_for_good(evidence: Evidence, quantities: Quantities, calls: Sequence[Call]) -> Broken | None:
    """What can never be granted was granted. Units may be added, and who may hold several may lose one."""
    for call in calls:
        if call.action != GRAB or call.retryable is not False or call.status not in CONTRADICTS:
            continue
        if call.code == "sold_out" and quantities.may_grow(call.began_ns):
            continue
        if call.code == "person_limit" and evidence.drops[call.drop_id].limit > 1:
            continue
        if call.code in ("sold_out", "person_limit", "ended", "request_mismatch"):
            return Broken(f"{call.code} for good, and a voucher for the same number", [call])
    return None


def _refused_only(calls: Sequence[Call]) -> Broken | None:
    """Every grab of the number was refused, so none of them can have left a voucher behind."""
    grabs = [call for call in calls if call.action == GRAB]
    if grabs and all(refuses(call) for call in grabs):
        return Broken("every grab was refused, and a voucher stands", grabs)
    return None


def _mismatch_without_reason(evidence: Evidence, key: Key, calls: Sequence[Call]) -> Broken | None:
    """A number is called used otherwise only where a voucher of another person or drop stands under it."""
    row = evidence.rows.get((key.partner_id, key.out_request_no))
    otherwise = row is not None and (row.drop_id, row.person_token) != (key.drop_id, key.person_token)
    for call in calls:
        if call.code == "request_mismatch" and not otherwise:
            return Broken("called used otherwise, and it was not", [call])
    return None
