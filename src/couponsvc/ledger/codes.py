"""The code a citizen shows at the till: 13 characters, one per voucher, not guessable from another.

Twelve characters of five bits carry a 60-bit number, the thirteenth checks them.

**The number** is `drop_no` (24 bits) and `seq` (36 bits), sent through a permutation of the
60-bit numbers that only the program's key determines. Being a permutation, it gives no two
vouchers of a program the same code, needs no table and no index, and whoever has the key
reads the voucher's primary key back out of it. Without the key the next code cannot be told
from a random one. The permutation is a balanced Feistel network: two halves of 30 bits (six
characters each), ten rounds; the round function encrypts one AES block that holds the half and
the number of the round, and keeps 30 bits of it. That is the structure of FF1 (NIST SP 800-38G)
with its number of rounds, but not FF1 itself, whose tweak, radix and CBC chaining two halves of
known size do not need.

**The alphabet** has 32 symbols: digits 2-9 and the letters without I and O. 0 and 1 are left
out too, so that nothing remains to confuse O/0 or I/1/L with. Lower case reads as upper.

**The check character** makes `sum(a^i * c_i) = 0` over GF(32) (a is a root of x^5 + x^2 + 1,
i counts from the right, the check character is c_0). The 13 weights are different and none is
zero, so every single wrong character and every swap of two characters, adjacent or not, is
noticed.

Speed: a batch is computed at once, in planes: the first characters of all its codes, then all
second ones, and so on. A round of the whole batch is one AES call, one XOR and one AND.
"""

from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES: Final = 32
CODE_CHARS: Final = 13
KEY_PURPOSE: Final = "program-code-key"
"""Purpose under which a program's code key is sealed (`support.sealing`)."""
ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
DROP_NO_MAX: Final = 2**24 - 1
SEQ_MAX: Final = 2**31 - 1
"""The number has room for 36 bits; the column in Postgres is an `integer`."""

_ROUNDS: Final = 10
_SEQ_BITS: Final = 36
_CHAR_BITS: Final = 5
_SYMBOLS: Final = 32
_HALF_CHARS: Final = 6
_BLOCK: Final = 16  # bytes of an AES block
_ROUND_AT: Final = _HALF_CHARS  # the block's byte that holds the number of the round
_CHUNK_MAX: Final = 1_024
"""Codes computed in one go: larger planes gain nothing and cost cache."""

_SEPARATED: Final = CODE_CHARS + 1  # a code and the line feed behind it
_FROM_LETTER: Final = {letter: value for value, letter in enumerate(ALPHABET)}
_TO_LETTER: Final = bytes.maketrans(bytes(range(_SYMBOLS)), ALPHABET.encode())
_COUNTING: Final = bytes(range(_SYMBOLS))
_IGNORED: Final = str.maketrans("", "", " -\t\u3000")


def _times(value: int, power: int) -> int:
    """`value * a^power` in GF(32)."""
    for _ in range(power):
        value = (value << 1) ^ (0b100101 if value & 0b10000 else 0)
    return value


_WEIGHTED: Final = [
    bytes(_times(value, power) if value < _SYMBOLS else 0 for value in range(256))
    for power in range(CODE_CHARS - 1, 0, -1)
]
"""One translation table per character before the check character: times its weight."""


class CodeBook:
    """Writes and reads the codes of one program."""

    def __init__(self, key: bytes) -> None:
        """Make the book of one program.

        Args:
            key: the program's own 32 secret bytes.

        Raises:
            ValueError: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a code key has {KEY_BYTES} bytes, this one {len(key)}")
        # ECB on purpose: a pseudo-random function of single blocks, never a mode for data.
        self._aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305

    def codes(self, drop_no: int, first_seq: int, count: int) -> list[str]:
        """Codes of the vouchers `first_seq … first_seq + count - 1` of a drop, in order.

        Raises:
            ValueError: a number is outside 1..DROP_NO_MAX or 1..SEQ_MAX; such a voucher
                could not be read back.
        """
        if not 1 <= drop_no <= DROP_NO_MAX or first_seq < 1 or first_seq + count - 1 > SEQ_MAX:
            raise ValueError(f"drop {drop_no}, vouchers {first_seq}+{count}: no code has room for that")
        written: list[str] = []
        for start in range(0, count, _CHUNK_MAX):
            size = min(_CHUNK_MAX, count - start)
            written += self._chunk(drop_no << _SEQ_BITS | (first_seq + start), size)
        return written

    def read(self, code: str) -> tuple[int, int] | None:
        """`(drop_no, seq)` that a code names, or None where it is mistyped or not of this program.

        A foreign code with a right check character can by chance read as some voucher: compare
        the code with the row that is found.
        """
        values = [_FROM_LETTER.get(letter, -1) for letter in code.translate(_IGNORED).upper()]
        if len(values) != CODE_CHARS or min(values) < 0:
            return None
        total = 0
        for value in values:  # Horner's rule, from the left
            total = _times(total, 1) ^ value
        if total:
            return None
        drop_no, seq = divmod(self._permute_back(bytes(values[:-1])), 1 << _SEQ_BITS)
        return (drop_no, seq) if drop_no and 1 <= seq <= SEQ_MAX else None

    def _chunk(self, first: int, count: int) -> list[str]:
        """Codes of the numbers `first … first + count - 1`."""
        planes = [_plane(first, count, shift * _CHAR_BITS) for shift in reversed(range(2 * _HALF_CHARS))]
        left = int.from_bytes(b"".join(planes[:_HALF_CHARS]))
        right = b"".join(planes[_HALF_CHARS:])
        mask = _low_five_bits(count * _HALF_CHARS)
        for step in range(_ROUNDS):
            mixed = left ^ (int.from_bytes(self._round(right, step, count)) & mask)
            left, right = int.from_bytes(right), mixed.to_bytes(count * _HALF_CHARS)
        return _letters(left.to_bytes(count * _HALF_CHARS) + right, count)

    def _round(self, half: bytes, step: int, count: int) -> bytes:
        """The round function on `count` halves, planes in, planes out (eight bits a character)."""
        blocks = bytearray(count * _BLOCK)
        for place in range(_HALF_CHARS):
            blocks[place::_BLOCK] = half[place * count : (place + 1) * count]
        blocks[_ROUND_AT::_BLOCK] = bytes((step,)) * count
        encrypted = self._aes.update(blocks)
        return b"".join([encrypted[place::_BLOCK] for place in range(_HALF_CHARS)])

    def _permute_back(self, characters: bytes) -> int:
        left, right = characters[:_HALF_CHARS], characters[_HALF_CHARS:]
        for step in reversed(range(_ROUNDS)):
            pad = self._round(left, step, 1)
            left, right = bytes(r ^ (p % _SYMBOLS) for r, p in zip(right, pad, strict=True)), left
        number = 0
        for value in left + right:
            number = number << _CHAR_BITS | value
        return number


def _plane(first: int, count: int, shift: int) -> bytes:
    """`(first + i) >> shift`, its low five bits, for i in 0..count-1: runs of equal bytes."""
    if shift == 0:
        start = first % _SYMBOLS
        return (_COUNTING * (count // _SYMBOLS + 2))[start : start + count]
    runs, number, end = [], first, first + count
    while number < end:
        following = min(end, ((number >> shift) + 1) << shift)
        runs.append(bytes(((number >> shift) % _SYMBOLS,)) * (following - number))
        number = following
    return b"".join(runs)


def _letters(planes: bytes, count: int) -> list[str]:
    """Append each code's check character, then turn planes of values into codes."""
    check = 0
    text = bytearray(b"\n") * (count * _SEPARATED)
    for place, weighted in enumerate(_WEIGHTED):
        plane = planes[place * count : (place + 1) * count]
        check ^= int.from_bytes(plane.translate(weighted))
        text[place::_SEPARATED] = plane.translate(_TO_LETTER)
    text[CODE_CHARS - 1 :: _SEPARATED] = check.to_bytes(count).translate(_TO_LETTER)
    return text.decode("ascii").split()


@lru_cache(maxsize=_CHUNK_MAX)
def _low_five_bits(size: int) -> int:
    """The mask that keeps five bits of each of `size` bytes."""
    return int.from_bytes(bytes((_SYMBOLS - 1,)) * size)
