"""Fuzzing without knowledge of the code: kept inputs cut, joined, repeated, and strewn with odd bytes."""

import random
from time import monotonic
from typing import Final

from hypothesis import strategies as st

from tests.fuzz.corpus import seeds_of
from tests.fuzz.targets import TARGETS

ODD: Final = (
    [bytes([number]) for number in (0, 9, 10, 13, 32, 34, 37, 44, 58, 59, 61, 92, 127, 128, 255)]
    + [
        b"\r\n",
        b"\r\n ",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\\u0000",
        b"\\ud800",
        b"\\",
        b"//",
        b"%00",
        b"%",
    ]
    + [b"null", b"true", b"1e9", b"-0", b"9" * 20, b"9" * 5_000, b"{", b"}", b"[", b"]", b"[" * 2_000]
    + [
        b"chunked",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 1\r\n",
        b"@query",
        b";sf",
        b"*a",
        b"&a ",
    ]
)


def altered(name: str) -> st.SearchStrategy[bytes]:
    """Inputs of a target, as Hypothesis makes them."""
    seeds = st.sampled_from(seeds_of(name))
    numbers = st.integers(0, 2**32)  # one draw: as many as there are choices would take most of the time
    return st.one_of(st.builds(_altered_by, seeds, seeds, numbers), st.binary(max_size=64))


def _altered_by(data: bytes, other: bytes, number: int) -> bytes:
    return _altered(data, other, random.Random(number))  # noqa: S311 - the same input for a number


def run_for(name: str, seconds: float) -> int:
    """Run a target on random inputs; how many there were. Raises what the target raises."""
    chance = random.Random(0)  # noqa: S311 - the same inputs every time
    seeds = seeds_of(name)
    count = 0
    end = monotonic() + seconds
    while monotonic() < end:
        data = _altered(chance.choice(seeds), chance.choice(seeds), chance)
        try:
            TARGETS[name](data)
        except BaseException:
            print(repr(data))  # noqa: T201 - the finding
            raise
        count += 1
    return count


def _altered(data: bytes, other: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        begin = chance.randint(0, len(data))
        end = min(len(data), begin + chance.choice((0, 0, 1, 1, 2, 8, 64)))
        cut = chance.randint(0, len(other))
        piece = chance.choice(
            (
                b"",
                chance.choice(ODD),
                other[cut : cut + chance.randint(0, 32)],
                data[begin:end] * chance.randint(0, 3),
                bytes([chance.randrange(256)]),
            )
        )
        data = data[:begin] + piece + data[end:]
    return data
