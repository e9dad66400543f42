"""Codes computed ahead are the codes computed one by one, whatever is asked for in what order."""

from hypothesis import given
from hypothesis import strategies as st

from couponsvc.ledger.codes import SEQ_MAX, CodeBook
from couponsvc.ledger.foreseen import CODES_AHEAD_MAX_COUNT, CodeRoll

BOOK = CodeBook(bytes(range(32)))


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60)), max_size=12))
def test_any_order_of_questions_gets_the_book_s_codes(asked: list[tuple[int, int]]) -> None:
    roll = CodeRoll(BOOK, 7)
    for first, count in asked:
        assert roll.codes(first, count) == BOOK.codes(7, first, count)


@given(st.lists(st.integers(1, 2 * CODES_AHEAD_MAX_COUNT), max_size=10))
def test_one_batch_after_another_gets_each_code_once(counts: list[int]) -> None:
    roll = CodeRoll(BOOK, 3)
    first = 1
    written: list[str] = []
    for count in counts:
        written += roll.codes(first, count)
        first += count
    assert written == BOOK.codes(3, 1, first - 1)


def test_the_last_number_of_all_has_nothing_ahead_of_it() -> None:
    roll = CodeRoll(BOOK, 1)
    assert roll.codes(SEQ_MAX - 2, 1) == BOOK.codes(1, SEQ_MAX - 2, 1)
    assert roll.codes(SEQ_MAX - 1, 2) == BOOK.codes(1, SEQ_MAX - 1, 2)
