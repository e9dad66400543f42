"""Till codes: unique, readable back, and what a slip of the finger does to them."""

from itertools import pairwise, product

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from couponsvc.ledger.codes import ALPHABET, CODE_CHARS, DROP_NO_MAX, SEQ_MAX, CodeBook, _times

KEY = bytes(range(32))
BOOK = CodeBook(KEY)


def check_sum(code: str) -> int:
    """The rule of the module's docstring, written a second time: sum of a^i * c_i, i from the right."""
    total = 0
    for power, letter in enumerate(reversed(code)):
        value = ALPHABET.index(letter)
        for _ in range(power):
            value = value << 1 if value < 16 else (value << 1) ^ 0b100101
        total ^= value
    return total


def test_the_alphabet_has_32_letters_and_none_that_look_alike() -> None:
    assert len(set(ALPHABET)) == len(ALPHABET) == 32
    assert not set(ALPHABET) & set("01IO")


def test_the_field_is_a_field_with_a_primitive_element() -> None:
    assert sorted(_times(1, power) for power in range(31)) == list(range(1, 32))
    assert _times(1, 31) == 1


def reference(key: bytes, drop_no: int, seq: int) -> str:
    """One code, computed character by character."""
    number = drop_no << 36 | seq
    digits = [number >> 5 * place & 31 for place in reversed(range(12))]
    left, right = digits[:6], digits[6:]
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - single blocks
    for step in range(10):
        pad = aes.update(bytes([*right, step]) + bytes(9))
        left, right = right, [value ^ (byte & 31) for value, byte in zip(left, pad[:6], strict=True)]
    body = "".join(ALPHABET[value] for value in left + right)
    return next(body + letter for letter in ALPHABET if check_sum(body + letter) == 0)


def test_codes_of_a_known_key_never_change() -> None:
    assert BOOK.codes(7, 1, 3) == ["GZT9TQTHRZ6XA", "9S3FUW5G6YF95", "E3PVEARGZLNJP"]


@given(st.binary(min_size=32, max_size=32), st.integers(1, DROP_NO_MAX), st.integers(1, SEQ_MAX - 70))
def test_codes_are_what_the_documentation_says(key: bytes, drop_no: int, seq: int) -> None:
    assert CodeBook(key).codes(drop_no, seq, 70)[::23] == [
        reference(key, drop_no, seq + offset) for offset in range(0, 70, 23)
    ]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 500, 1023, 1024, 1025, 2500])
def test_a_batch_writes_what_single_codes_write(count: int) -> None:
    batch = BOOK.codes(12, 40, count)
    sample = sorted({0, 1, count // 2, count - 1} & set(range(count)))
    assert [batch[i] for i in sample] == [BOOK.codes(12, 40 + i, 1)[0] for i in sample]
    assert [BOOK.read(code) for code in batch] == [(12, 40 + i) for i in range(count)]


def test_codes_of_many_drops_are_unique() -> None:
    written = [code for drop_no in range(1, 41) for code in BOOK.codes(drop_no, 1, 1_000)]
    assert len(set(written)) == 40_000
    assert {len(code) for code in written} == {CODE_CHARS}


@given(st.integers(1, DROP_NO_MAX), st.integers(1, SEQ_MAX))
def test_every_number_reads_back(drop_no: int, seq: int) -> None:
    (code,) = BOOK.codes(drop_no, seq, 1)
    assert check_sum(code) == 0
    assert BOOK.read(code) == (drop_no, seq)


def test_a_code_is_read_in_lower_case_and_with_blanks_and_hyphens() -> None:
    (code,) = BOOK.codes(3, 9, 1)
    assert BOOK.read(f" {code[:4].lower()}-{code[4:8]} {code[8:]} ") == (3, 9)


def test_every_single_wrong_character_is_noticed() -> None:
    for code in BOOK.codes(3, 1, 20):
        for place, letter in product(range(CODE_CHARS), ALPHABET):
            wrong = code[:place] + letter + code[place + 1 :]
            assert (check_sum(wrong) == 0) == (wrong == code)
            assert wrong == code or BOOK.read(wrong) is None


def test_every_swap_of_two_characters_is_noticed() -> None:
    for code in BOOK.codes(3, 1, 50):
        for first, second in product(range(CODE_CHARS), repeat=2):
            swapped = list(code)
            swapped[first], swapped[second] = code[second], code[first]
            wrong = "".join(swapped)
            assert wrong == code or BOOK.read(wrong) is None


def test_the_check_is_linear_so_that_the_two_proofs_above_hold_for_every_code() -> None:
    """A wrong or swapped character changes the sum by a product of two elements that are not zero."""
    weights = [_times(1, power) for power in range(CODE_CHARS)]
    assert len(set(weights)) == CODE_CHARS
    assert 0 not in weights
    for power, value in product(range(CODE_CHARS), range(1, 32)):
        assert _times(value, power) != 0
    for (left, right), value in product(pairwise(range(CODE_CHARS)), range(1, 32)):
        assert _times(value, left) != _times(value, right)


@pytest.mark.parametrize("text", ["", "2", "2" * 12, "2" * 14, "0" * 13, "I" * 13, "券" * 13, "2" * 12 + "1"])
def test_what_is_no_code_reads_as_nothing(text: str) -> None:
    assert BOOK.read(text) is None


def test_codes_of_another_program_hardly_ever_read_as_ours() -> None:
    foreign = CodeBook(bytes(32)).codes(3, 1, 2_000)
    read = [BOOK.read(code) for code in foreign]
    assert sum(found is not None for found in read) < 2_000 / 32 * 2  # seq has 31 of 36 bits
    assert (3, 1) not in read


def test_neighbouring_numbers_give_codes_without_resemblance() -> None:
    """Half of a code's bits differ from its neighbour's on average: nothing to guess from."""
    written = BOOK.codes(3, 1, 1_000)
    differing = sum(
        (ALPHABET.index(a) ^ ALPHABET.index(b)).bit_count()
        for one, other in pairwise(written)
        for a, b in zip(one[:-1], other[:-1], strict=True)
    )
    assert 0.48 < differing / (999 * 60) < 0.52


@pytest.mark.parametrize(
    ("drop_no", "seq", "count"),
    [(0, 1, 1), (DROP_NO_MAX + 1, 1, 1), (1, 0, 1), (1, SEQ_MAX, 2), (-1, 1, 1)],
)
def test_numbers_without_room_are_refused(drop_no: int, seq: int, count: int) -> None:
    with pytest.raises(ValueError, match="no code has room"):
        BOOK.codes(drop_no, seq, count)


def test_no_vouchers_no_codes() -> None:
    assert BOOK.codes(1, 1, 0) == []


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        CodeBook(bytes(length))
