"""Were the four promises kept? Decided from what clients recorded and what Postgres holds, alone.

Pure: no clock, no server. A checker that cannot find a planted violation proves nothing, so
tests/unit/test_demo_promises.py plants one of each kind.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from couponsvc.client.answers import SOLD_OUT
from couponsvc.demo.records import DropRow, Press, Rows, VoucherRow, Why
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.voucher import Issued, Receipt

SHOWN_MAX_COUNT: Final = 5
"""Violations spelt out per promise; one is already too many to go on."""
_NS_PER_MS: Final = 1_000_000
_REFUSED: Final = frozenset({403, 404, 409, 422})
"""Answers by rule. 202, 429 and 5xx leave the number open."""


class Promise(NamedTuple):
    """One promise, and every way in which it was broken."""

    number: int
    name: str
    checked: str
    """What was compared, with counts."""
    violations: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.violations


class Evidence:
    """Records and rows, indexed once for all promises."""

    def __init__(self, presses: Iterable[Press], rows: Rows) -> None:
        self.presses: Final = sorted(presses, key=lambda press: press.settled_ns)
        self.drops: Final = {drop.drop_id: drop for drop in rows.drops}
        self.vouchers: Final = rows.vouchers
        self.by_drop: Final[Mapping[int, list[VoucherRow]]] = _grouped(rows.vouchers)
        self.by_number: Final = {row.out_request_no: row for row in rows.vouchers}
        self.of_number: Final[dict[tuple[str, str, str], list[Press]]] = defaultdict(list)
        for press in self.presses:
            self.of_number[press.drop_id, press.out_request_no, press.person_token].append(press)
        self.receipts: Final = {
            row.out_request_no: text
            for drop in rows.drops
            for row, text in receipts_of(drop, self.by_drop.get(drop.drop_no, ()))
        }


def verify(presses: Iterable[Press], rows: Rows) -> list[Promise]:
    """Judge a rush: the four promises in order."""
    evidence = Evidence(presses, rows)
    issued, persons = len(rows.vouchers), len({row.person_token for row in rows.vouchers})
    refused = sum(press.outcome == SOLD_OUT for press in evidence.presses)
    confirmed = sum(press.confirmed for press in evidence.presses)
    numbers = len(evidence.of_number)
    return [
        Promise(
            1,
            "never one too many",
            f"{issued:,} vouchers of {sum(d.quantity for d in rows.drops):,}, {persons:,} persons",
            tuple(_too_many(evidence)),
        ),
        Promise(
            2,
            "never one too few",
            f"{refused:,} times sold out, by time and stock",
            tuple(_too_few(evidence)),
        ),
        Promise(
            3,
            "confirmed means for ever",
            f"{confirmed:,} vouchers answered, byte by byte against Postgres",
            tuple(_not_for_ever(evidence)),
        ),
        Promise(
            4,
            "one request, one answer",
            f"{len(evidence.presses):,} answers to {numbers:,} numbers",
            tuple(_two_answers(evidence)),
        ),
    ]


def shown(promise: Promise) -> Iterator[str]:
    """The first few violations, and how many more there are."""
    yield from islice(promise.violations, SHOWN_MAX_COUNT)
    if len(promise.violations) > SHOWN_MAX_COUNT:
        yield f"and {len(promise.violations) - SHOWN_MAX_COUNT:,} more"


def _too_many(evidence: Evidence) -> Iterator[str]:
    for drop in evidence.drops.values():
        yield from _too_many_of(drop, evidence.by_drop.get(drop.drop_no, []))
        for row in evidence.by_drop.get(drop.drop_no, ()):
            if (drop.drop_id, row.out_request_no, row.person_token) not in evidence.of_number:
                yield f"{drop.drop_id}: voucher {row.seq} was never asked for"
    for code, count in Counter(row.code for row in evidence.vouchers).items():
        if count > 1:
            yield f"code {code} stands on {count} vouchers"


def _too_many_of(drop: DropRow, rows: Sequence[VoucherRow]) -> Iterator[str]:
    if len(rows) > drop.quantity:
        yield f"{drop.drop_id}: {len(rows):,} vouchers of {drop.quantity:,}"
    if drop.issued != len(rows):
        yield f"{drop.drop_id}: says {drop.issued:,} issued, holds {len(rows):,} vouchers"
    if sorted(row.seq for row in rows) != list(range(1, len(rows) + 1)):
        yield f"{drop.drop_id}: numbers are not 1 to {len(rows):,} without gap and repetition"
    for person, count in Counter(row.person_token for row in rows).items():
        if count > drop.per_person_limit:
            yield f"{drop.drop_id}: {person} holds {count} vouchers, {drop.per_person_limit} allowed"


def _too_few(evidence: Evidence) -> Iterator[str]:
    refused: dict[str, list[Press]] = defaultdict(list)
    for press in evidence.presses:
        if press.outcome == SOLD_OUT:
            refused[press.drop_id].append(press)
    for drop_id, presses in refused.items():
        drop = evidence.drops[drop_id]
        rows = evidence.by_drop.get(drop.drop_no, [])
        if len(rows) < drop.quantity:
            yield (
                f"{drop_id}: {len(presses):,} times sold out, and in the end "
                f"{drop.quantity - len(rows):,} of {drop.quantity:,} were never issued"
            )
        last_issued_ms = max((row.issued_ms for row in rows), default=0)
        takers = sorted(_takers(evidence, drop))
        for press in presses:
            if not press.retryable and press.settled_ns // _NS_PER_MS < last_issued_ms:
                yield f"{drop_id}: {press.out_request_no} was told finally sold out before the last issue"
            if bisect_right(takers, press.settled_ns) < drop.quantity:
                yield f"{drop_id}: {press.out_request_no} was told sold out while one was certainly left"


def _takers(evidence: Evidence, drop: DropRow) -> Iterator[int]:
    """When each request was sent that could have held a unit: those granted, and those mistaken."""
    for row in evidence.by_drop.get(drop.drop_no, ()):
        asked = evidence.of_number.get((drop.drop_id, row.out_request_no, row.person_token), ())
        yield min((press.sent_ns for press in asked), default=0)
    for press in evidence.presses:
        if press.why is Why.MISMATCH and press.drop_id == drop.drop_id:
            yield press.sent_ns


def _not_for_ever(evidence: Evidence) -> Iterator[str]:
    held = {
        (row.drop_no, row.person_token, evidence.receipts[row.out_request_no])
        for row in evidence.vouchers
        if row.out_request_no in evidence.receipts
    }
    for press in evidence.presses:
        number, drop_no = press.out_request_no, evidence.drops[press.drop_id].drop_no
        if press.confirmed:
            standing = evidence.by_number.get(number)
            if standing is None or (standing.drop_no, standing.person_token) != (
                drop_no,
                press.person_token,
            ):
                yield f"{number} was confirmed and is not in Postgres"
            elif press.voucher != evidence.receipts[number]:
                yield f"{number}: the voucher answered is not the one in Postgres"
        elif press.voucher and (drop_no, press.person_token, press.voucher) not in held:
            yield f"{number}: {press.outcome} named a voucher that the person does not hold"


def _two_answers(evidence: Evidence) -> Iterator[str]:
    for number, count in Counter(row.out_request_no for row in evidence.vouchers).items():
        if count > 1:
            yield f"{number} stands for {count} vouchers"
    for (drop_id, number, person), presses in evidence.of_number.items():
        if len({press.voucher for press in presses if press.confirmed}) > 1:
            yield f"{number}: different bytes were answered to the same request"
        first = next((press for press in presses if press.confirmed), None)
        for press in presses:
            if first and press.status in _REFUSED and press.sent_ns > first.settled_ns:
                yield f"{number}: {press.outcome} after it had been confirmed"
        row = evidence.by_number.get(number)
        stands = row and (row.drop_no, row.person_token) == (evidence.drops[drop_id].drop_no, person)
        last = next((press for press in reversed(presses) if press.status), None)
        if stands and last and last.status in _REFUSED:
            yield f"{number}: the last answer was {last.outcome}, and a voucher stands"


def _grouped(vouchers: Sequence[VoucherRow]) -> dict[int, list[VoucherRow]]:
    grouped: dict[int, list[VoucherRow]] = defaultdict(list)
    for row in vouchers:
        grouped[row.drop_no].append(row)
    return grouped


def receipts_of(drop: DropRow, rows: Iterable[VoucherRow]) -> Iterator[tuple[VoucherRow, str]]:
    """What the API must have answered for each row (invariant I4)."""
    terms = VoucherTerms(drop.face_value_fen, drop.min_spend_fen, drop.valid_for_ms)
    receipt = Receipt(drop.drop_no, drop.drop_id, terms)
    for row in rows:
        issued = Issued(row.person_token, row.out_request_no, row.seq, row.issued_ms, row.code)
        yield row, receipt.render(issued).decode()
