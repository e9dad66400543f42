"""The promises that need no thought about time; the checker has all of them."""

from collections import Counter
from typing import NamedTuple

from tests.faults.harness.final import FinalState
from tests.faults.harness.history import Call, History


class Violation(NamedTuple):
    rule: str
    says: str
    calls: list[Call]


class Report(NamedTuple):
    violations: list[Violation]
    checked: dict[str, int]


def judge(history: History, final: FinalState) -> Report:
    found: list[Violation] = []
    checked: Counter[str] = Counter()
    rows = {(voucher.partner_id, voucher.out_request_no): voucher for voucher in final.vouchers}
    for call in history.calls:
        if call.status in (200, 201):
            checked["confirmed_stands"] += 1
            row = rows.get((call.partner_id, call.out_request_no))
            if row is None or row.receipt != call.body:
                found.append(Violation("confirmed_stands", f"{call} but {row}", [call]))
    for drop in final.drops:
        seqs = [voucher.seq for voucher in final.vouchers if voucher.drop_id == drop.drop_id]
        if seqs != list(range(1, drop.issued + 1)) or drop.issued > drop.quantity:
            found.append(Violation("never_too_many", f"{drop}: {len(seqs)}", []))
        held = Counter(
            (voucher.partner_id, voucher.person_token)
            for voucher in final.vouchers
            if voucher.drop_id == drop.drop_id
        )
        if held and max(held.values()) > drop.limit:
            found.append(Violation("person_limit", f"{drop}: {held.most_common(1)}", []))
    if final.check_exit:
        found.append(Violation("zero_drift", final.check_output, []))
    return Report(found, dict(checked))
