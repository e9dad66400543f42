"""What chance decides about a person, the same in every run with the same seed.

A draw depends on the seed, the person and what it decides, and on nothing else: not on the number
of workers, not on what others did. So a crowd can be divided among any number of processes without
telling them more than the seed, and 50,000 persons need no 50,000 generators of random numbers.
"""

from hashlib import blake2b
from struct import Struct
from typing import Final

_PACK: Final = Struct("<qqq").pack
_DIGEST_BYTES: Final = 7
_SCALE: Final = 1 << 8 * _DIGEST_BYTES
"""2^56: more bits than a float between 0 and 1 can show."""

KIND: Final = 1
ARRIVAL: Final = 2
DROP: Final = 3
WHICH_OF_COUNT: Final = 4
FIRST_FREE: Final = 16
"""Draws from here on are a person's own, in the order it makes them."""


def fate(seed: int, person: int, what: int) -> float:
    """A number in [0, 1), evenly distributed; about 1 µs."""
    drawn = blake2b(_PACK(seed, person, what), digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(drawn, "little") / _SCALE


def token_of(run: str, person: int) -> str:
    """The person's token: a pseudonym, new in every run."""
    return f"p-{blake2b(f'{run}:{person}'.encode(), digest_size=10).hexdigest()}"
