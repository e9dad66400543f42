"""What a drainer foresees of a drop, and the arguments of the statements that rely on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, NamedTuple

from couponsvc.ledger.codes import SEQ_MAX, CodeBook
from couponsvc.ledger.grouping import SEPARATOR, Answers, Columns, Group
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import MalformedEntry

CODES_AHEAD_FIRST_COUNT: Final = 16
CODES_AHEAD_MAX_COUNT: Final = 512
"""Codes computed at once for small batches: a hundredth of what each costs alone, and 32 kB a drop."""


class CodeRoll:
    """Codes of one drop in the order of its numbers, computed some way ahead."""

    def __init__(self, book: CodeBook, drop_no: int) -> None:
        self.book: Final = book
        self._drop_no: Final = drop_no
        self._first = 1
        self._ready: list[str] = []
        self._ahead_count = CODES_AHEAD_FIRST_COUNT

    def codes(self, first: int, count: int) -> list[str]:
        """Codes of the vouchers `first … first + count - 1`; cheap where calls follow each other.

        Raises:
            ValueError: as `CodeBook.codes`.
        """
        skipped = first - self._first
        ready = self._ready[skipped : skipped + count] if skipped >= 0 else []
        missing = count - len(ready)
        if missing:
            start = first + len(ready)
            computed = self.book.codes(
                self._drop_no, start, max(missing, min(self._ahead_count, SEQ_MAX + 1 - start))
            )
            ready += computed[:missing]
            self._first, self._ready = start + missing, computed[missing:]
            self._ahead_count = min(2 * self._ahead_count, CODES_AHEAD_MAX_COUNT)
        return ready


@dataclass(slots=True)
class Figures:
    """What this process knows of a drop: true when read, foreseen until the next commit."""

    epoch: int
    issued: int
    quantity: int
    roll: CodeRoll


class Texts(NamedTuple):
    """A group's grants as `commit_to_drop` takes them: shared values, then columns as texts."""

    partner_no: int
    ordinal: int
    channel: str
    region: str
    person_tokens: str
    out_request_nos: str
    codes: str
    partner_nos: str
    """Empty where every grant has the shared value, like the three that follow."""
    ordinals: str
    channels: str
    regions: str


def texts_of(columns: Columns, codes: Sequence[str]) -> Texts:
    """Turn columns into texts.

    Raises:
        MalformedEntry: a value has the separator in it, so that the columns would not fit together.
    """
    partners, tokens, numbers, ordinals, _, channels, regions = columns
    return Texts(
        int(partners[0]),
        ordinals[0],
        channels[0],
        regions[0],
        _join(tokens),
        _join(numbers),
        _join(codes),
        "" if _shared(partners) else _join(partners),
        "" if _shared(ordinals) else _join([str(ordinal) for ordinal in ordinals]),
        "" if _shared(channels) else _join(channels),
        "" if _shared(regions) else _join(regions),
    )


def arguments_of(groups: Sequence[Group], figures: Sequence[Figures], texts: Sequence[Texts]) -> list[Any]:
    """Arguments of `commit_to_drops`: of each parameter of `commit_to_drop` an array over drops."""
    return [
        [group.key.drop_no for group in groups],
        [group.key.epoch for group in groups],
        [known.issued for known in figures],
        [len(group.grants) for group in groups],
        *map(list, zip(*texts, strict=True)),
    ]


def confirm(columns: Columns, first_seq: int, issued_ms: int, codes: Sequence[str]) -> Answers:
    """Answers for a group whose vouchers are numbered from `first_seq`."""
    numbers = columns.numbers
    seqs = range(first_seq, first_seq + len(numbers))
    verdicts, moments = repeat(int(Verdict.COMMITTED)), repeat(issued_ms)
    rows = zip(columns.places, verdicts, seqs, moments, codes, numbers, strict=False)
    return Answers(list(rows), all_committed=True)


def _shared(column: Sequence[object]) -> bool:
    """Whether all values are one. A column that is sent has two at least, and so is never empty."""
    return column.count(column[0]) == len(column)


def _join(column: Sequence[str]) -> str:
    joined = SEPARATOR.join(column)
    if joined.count(SEPARATOR) != len(column) - 1:
        raise MalformedEntry("a grant has a control character in it")
    return joined
