"""The demo's judge finds every violation that is planted, and none where there is none."""

import re
from collections.abc import Callable

import msgspec
import pytest

from couponsvc.demo.figures import figures_of, quantile
from couponsvc.demo.promises import SHOWN_MAX_COUNT, shown, verify
from couponsvc.demo.records import DropRow, Press, Rows, VoucherRow, Why
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.voucher import Issued, Receipt

OPENS_MS = 1_800_000_000_000
DROP = DropRow(7, "wed-20", 2, 1, 2, OPENS_MS, 2000, 5000, 172_800_000)
FIRST = VoucherRow(7, 1, "ann", "n-1", "CODE-1", OPENS_MS + 10)
SECOND = VoucherRow(7, 2, "bob", "n-2", "CODE-2", OPENS_MS + 20)


def receipt(row: VoucherRow) -> str:
    terms = VoucherTerms(DROP.face_value_fen, DROP.min_spend_fen, DROP.valid_for_ms)
    issued = Issued(row.person_token, row.out_request_no, row.seq, row.issued_ms, row.code)
    return Receipt(DROP.drop_no, DROP.drop_id, terms).render(issued).decode()


def press(
    person: str, number: str, after_ms: int, outcome: str, *, voucher: str = "", retryable: bool = False
) -> Press:
    """Sent `after_ms` after the opening, answered 10 ms later."""
    status = {"issued": 201, "repeated": 200, "lost": 0, "pending": 202, "unknown_request": 404}
    sent_ns = (OPENS_MS + after_ms) * 1_000_000
    return Press(
        DROP.drop_id,
        person,
        number,
        Why.FIRST,
        sent_ns,
        sent_ns + 10_000_000,
        status.get(outcome, 409),
        outcome,
        retryable,
        voucher,
    )


def good_rows() -> Rows:
    return Rows((DROP,), (FIRST, SECOND))


def good_presses() -> list[Press]:
    """Ann wins, repeats and presses twice; Bob's answer is lost, he asks again; Cid is too late."""
    return [
        press("ann", "n-1", 1, "issued", voucher=receipt(FIRST)),
        press("ann", "n-1", 20, "repeated", voucher=receipt(FIRST)),
        press("ann", "n-1b", 21, "person_limit", voucher=receipt(FIRST)),
        press("bob", "n-2", 2, "lost"),
        press("bob", "n-2", 30, "repeated", voucher=receipt(SECOND)),
        press("cid", "n-3", 15, "sold_out", retryable=True),
        press("cid", "n-3", 40, "sold_out"),
        press("cid", "n-3", 50, "unknown_request", retryable=True),
    ]


def broken(presses: list[Press], rows: Rows) -> dict[int, str]:
    return {p.number: "; ".join(p.violations) for p in verify(presses, rows) if not p.kept}


def test_a_correct_rush_keeps_all_four_promises() -> None:
    promises = verify(good_presses(), good_rows())
    assert [(promise.number, promise.kept) for promise in promises] == [(n, True) for n in (1, 2, 3, 4)]


def test_an_empty_rush_breaks_nothing() -> None:
    assert broken([], Rows((DROP._replace(issued=0),), ())) == {}


Plant = Callable[[list[Press], Rows], tuple[list[Press], Rows]]


def more_than_the_quantity(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    third = VoucherRow(7, 3, "dan", "n-4", "CODE-3", OPENS_MS + 21)
    asked = press("dan", "n-4", 3, "issued", voucher=receipt(third))
    return [*presses, asked], Rows((DROP._replace(issued=3),), (*rows.vouchers, third))


def two_vouchers_for_one_person(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    second = SECOND._replace(person_token="ann")
    won = press("ann", "n-2", 2, "issued", voucher=receipt(second))
    return [*presses[:3], won], rows._replace(vouchers=(FIRST, second))


def one_number_issued_twice(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    return presses, rows._replace(vouchers=(FIRST, FIRST._replace(seq=2, code="CODE-9")))


def a_gap_in_the_numbers(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    third = SECOND._replace(seq=3)
    presses[4] = msgspec.structs.replace(presses[4], voucher=receipt(third))
    return presses, rows._replace(vouchers=(FIRST, third))


def a_counter_that_lies(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    return presses, rows._replace(drops=(DROP._replace(issued=1),))


def one_code_twice(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    same = SECOND._replace(code=FIRST.code)
    presses[4] = msgspec.structs.replace(presses[4], voucher=receipt(same))
    return presses, rows._replace(vouchers=(FIRST, same))


def a_voucher_nobody_asked_for(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    return [*presses[:3], *presses[5:]], rows


def stock_left_although_refused(presses: list[Press], _rows: Rows) -> tuple[list[Press], Rows]:
    presses = [*presses[:3], *presses[5:]]
    return presses, Rows((DROP._replace(issued=1),), (FIRST,))


def finally_sold_out_too_soon(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    presses[5] = press("cid", "n-3", 5, "sold_out")  # answered at 15 ms, the last was issued at 20 ms
    return presses, rows


def sold_out_before_enough_had_asked(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    presses[3] = press("bob", "n-2", 28, "lost")  # until then one unit was certainly free
    return presses, rows


def a_201_without_row(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    gone = SECOND._replace(person_token="eve", out_request_no="n-5", seq=3)
    return [*presses, press("eve", "n-5", 3, "issued", voucher=receipt(gone))], rows


def another_voucher_than_the_row(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    wrong = receipt(FIRST).replace("CODE-1", "CODE-7")
    return [msgspec.structs.replace(p, voucher=wrong) if p.confirmed else p for p in presses[:2]] + presses[
        3:
    ], rows


def a_limit_that_names_a_stranger(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    presses[2] = press("ann", "n-1b", 21, "person_limit", voucher=receipt(SECOND))
    return presses, rows


def other_bytes_on_retry(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    spaced = receipt(FIRST).replace(",", ", ", 1)
    presses[1] = press("ann", "n-1", 20, "repeated", voucher=spaced)
    return presses, rows


def refused_after_it_was_confirmed(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    presses[1] = press("ann", "n-1", 20, "sold_out", retryable=True)
    return presses, rows


def refused_and_issued_nevertheless(presses: list[Press], rows: Rows) -> tuple[list[Press], Rows]:
    presses[4] = press("bob", "n-2", 30, "sold_out")
    return presses, rows


@pytest.mark.parametrize(
    ("plant", "promise", "says"),
    [
        (more_than_the_quantity, 1, "3 vouchers of 2"),
        (two_vouchers_for_one_person, 1, "ann holds 2 vouchers, 1 allowed"),
        (one_number_issued_twice, 1, "ann holds 2 vouchers"),
        (one_number_issued_twice, 4, "n-1 stands for 2 vouchers"),
        (a_gap_in_the_numbers, 1, "without gap"),
        (a_counter_that_lies, 1, "says 1 issued, holds 2"),
        (one_code_twice, 1, "code CODE-1 stands on 2"),
        (a_voucher_nobody_asked_for, 1, "voucher 2 was never asked for"),
        (stock_left_although_refused, 2, "1 of 2 were never issued"),
        (finally_sold_out_too_soon, 2, "finally sold out before the last issue"),
        (sold_out_before_enough_had_asked, 2, "while one was certainly left"),
        (a_201_without_row, 3, "n-5 was confirmed and is not in Postgres"),
        (another_voucher_than_the_row, 3, "not the one in Postgres"),
        (a_limit_that_names_a_stranger, 3, "does not hold"),
        (other_bytes_on_retry, 4, "different bytes"),
        (refused_after_it_was_confirmed, 4, "sold_out after it had been confirmed"),
        (refused_and_issued_nevertheless, 4, "the last answer was sold_out, and a voucher stands"),
    ],
)
def test_a_planted_violation_is_found(plant: Plant, promise: int, says: str) -> None:
    found = broken(*plant(good_presses(), good_rows()))
    assert says in found.get(promise, ""), found


def test_a_mistaken_grab_may_hold_a_unit_for_a_moment() -> None:
    """A number reused for another person takes a unit until Postgres says no: sold out is true then."""
    presses = good_presses()
    presses[3] = press("bob", "n-2", 28, "lost")
    mistaken = msgspec.structs.replace(press("zoe", "n-1", 3, "request_mismatch"), why=Why.MISMATCH)
    assert broken([*presses, mistaken], good_rows()) == {}


def test_only_the_first_violations_are_spelt_out() -> None:
    presses = [press(f"p{n}", f"x-{n}", 3, "issued", voucher="{}") for n in range(SHOWN_MAX_COUNT + 4)]
    third = verify(presses + good_presses(), good_rows())[2]
    lines = list(shown(third))
    assert len(lines) == SHOWN_MAX_COUNT + 1
    assert lines[-1] == "and 4 more"


def test_figures_count_the_rush_and_not_what_was_asked_afterwards() -> None:
    again = msgspec.structs.replace(
        press("ann", "n-1", 9_000, "repeated", voucher=receipt(FIRST)), why=Why.ASKED_AGAIN
    )
    figures = figures_of([*good_presses(), again], good_rows())
    assert figures.requests_count == 8
    assert figures.confirmed_count == 2
    assert figures.confirmed_per_s == pytest.approx(100)
    assert figures.drops[0].sold_out_after_s == pytest.approx(0.02)
    assert figures.confirmed_p50_ms == pytest.approx(10)
    assert figures.rush_s == pytest.approx(0.06, abs=0.001)
    assert figures.outcomes["sold_out"] == 2


def test_a_drop_with_stock_left_has_no_time_of_selling_out() -> None:
    rows = Rows((DROP._replace(issued=1),), (FIRST,))
    assert figures_of([], rows).drops[0].sold_out_after_s is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(
    share: float, expected: float
) -> None:
    assert quantile([float(n) for n in range(1, 101)], share) == expected
    assert quantile([], share) == 0


def test_every_violation_names_what_it_is_about() -> None:
    plants = (more_than_the_quantity, a_201_without_row, other_bytes_on_retry, stock_left_although_refused)
    for plant in plants:
        for promise in verify(*plant(good_presses(), good_rows())):
            assert all(re.match(r"(wed-20|n-\d)", violation) for violation in promise.violations)
