"""The judge of the partner's books finds every violation that is planted, and none where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from couponsvc.demo.hearing import DEFINED, OPENED, SOLD_OUT, Books, hearing_of, verify_books
from couponsvc.demo.partner_ledger import HeardEvent, HeardVoucher, PartnerLedger
from tests.unit.test_demo_promises import DROP, FIRST, OPENS_MS, SECOND, good_rows, receipt

ISSUED = "couponsvc.voucher.issued.v1"


def event(number: int, kind: str) -> HeardEvent:
    return HeardEvent(f"evt_{number}", kind, DROP.drop_id, number, OPENS_MS + 30, 0, 0)


EVENTS = [event(1, DEFINED), event(2, OPENED), event(3, ISSUED), event(4, SOLD_OUT)]
VOUCHERS = [
    HeardVoucher("vch_7_1", receipt(FIRST), OPENS_MS + 30),
    HeardVoucher("vch_7_2", receipt(SECOND), OPENS_MS + 50),
]
GOOD = Books(EVENTS, VOUCHERS)


def test_books_that_equal_the_ledger_are_good() -> None:
    promise = verify_books(GOOD, good_rows())
    assert promise.kept, promise.violations


PLANTS: dict[str, tuple[Callable[[Books], Books], str]] = {
    "never heard": (
        lambda b: b._replace(vouchers=b.vouchers[:1]),
        "vch_7_2 stands in Postgres and the partner",
    ),
    "told twice": (
        lambda b: b._replace(vouchers=[*b.vouchers, b.vouchers[0]]),
        "vch_7_1 was told by 2 events",
    ),
    "invented": (
        lambda b: b._replace(vouchers=[*b.vouchers, HeardVoucher("vch_7_3", "{}", 0)]),
        "vch_7_3 was told and is not in Postgres",
    ),
    "other bytes than Postgres": (
        lambda b: b._replace(vouchers=[b.vouchers[0], b.vouchers[1]._replace(receipt="{}")]),
        "vch_7_2: the voucher told is not the one in Postgres",
    ),
    "other bytes the second time": (
        lambda b: b._replace(events=[*b.events[:3], b.events[3]._replace(other_bytes_count=1)]),
        "evt_4 came again with other bytes",
    ),
    "a gap in the sequence": (
        lambda b: b._replace(events=[*b.events[:3], b.events[3]._replace(sequence=5)]),
        "not numbered 1 to 4",
    ),
    "a sequence given twice": (
        lambda b: b._replace(events=[*b.events[:3], b.events[3]._replace(sequence=3)]),
        "not numbered 1 to 4",
    ),
    "no definition": (
        lambda b: b._replace(events=[event(1, ISSUED), *b.events[1:]]),
        "what it is was not told",
    ),
    "no opening": (
        lambda b: b._replace(events=[b.events[0], event(2, ISSUED), *b.events[2:]]),
        "its opening was told 0 times",
    ),
    "sold out never told": (
        lambda b: b._replace(events=[*b.events[:3], event(4, ISSUED)]),
        "that it is sold out was told 0 times",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_violation_is_found(plant: str) -> None:
    spoil, expected = PLANTS[plant]
    violations = verify_books(spoil(GOOD), good_rows()).violations
    assert any(expected in violation for violation in violations), violations


def test_lags_are_from_commit_to_first_receipt() -> None:
    hearing = hearing_of(GOOD, good_rows())
    assert (hearing.lag_p50_ms, hearing.lag_max_ms, hearing.events_count) == (20.0, 30.0, 4)


BODY = (
    b'{"id":"evt_2","type":"couponsvc.voucher.issued.v1","sequence":"0000000002","data":{"drop_id":"wed-20",'
    b'"vouchers":[{"voucher_id":"vch_7_1","a": "\xe5\x88\xb8"},{"voucher_id":"vch_7_2"}]}}'
)


def test_a_ledger_keeps_an_event_once_and_its_vouchers_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "partner.db"
    with PartnerLedger(path) as ledger:
        assert ledger.remember(BODY, 5)
    with PartnerLedger(path) as ledger:  # as after a kill
        assert not ledger.remember(BODY, 9)
        assert not ledger.remember(BODY + b" ", 9)
        assert ledger.vouchers_count() == 2
        assert ledger.events() == [HeardEvent("evt_2", ISSUED, "wed-20", 2, 5, 2, 1)]
        assert sorted(voucher.receipt for voucher in ledger.vouchers()) == [
            '{"voucher_id":"vch_7_1","a": "券"}',
            '{"voucher_id":"vch_7_2"}',
        ]
