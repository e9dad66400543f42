"""What a drainer foresees of a drop, and the arguments of the statements that rely on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, NamedTuple

from couponsvc.ledger.codes import SEQ_MAX, CodeBook
from couponsvc.ledger.grouping import SEPARATOR, Group
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import Confirmation, MalformedEntry

CODES_AHEAD_FIRST_COUNT: Final = 16
CODES_AHEAD_MAX_COUNT: Final = 256
"""Codes computed at once for small batches: ten times as cheap per code as one alone, 16 kB a drop."""


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


class Columns(NamedTuple):
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


def columns_of(group: Group, codes: Sequence[str]) -> Columns:
    """Turn a group into columns.

    Raises:
        MalformedEntry: a value has the separator in it, so that the columns would not fit together.
    """
    _, holders, numbers, ordinals, _, channels, regions = zip(*group.grants, strict=True)
    partners, _, tokens = zip(*[holder.partition(":") for holder in holders], strict=True)
    return Columns(
        int(partners[0]),
        ordinals[0],
        channels[0],
        regions[0],
        _join(tokens),
        _join(numbers),
        _join(codes),
        _join_unless_shared(partners),
        _join_unless_shared([str(ordinal) for ordinal in ordinals]),
        _join_unless_shared(channels),
        _join_unless_shared(regions),
    )


def arguments_of(
    groups: Sequence[Group], figures: Sequence[Figures], columns: Sequence[Columns]
) -> list[Any]:
    """Arguments of `commit_to_drops`: of each parameter of `commit_to_drop` an array over drops."""
    return [
        [group.key.drop_no for group in groups],
        [group.key.epoch for group in groups],
        [known.issued for known in figures],
        [len(group.grants) for group in groups],
        *map(list, zip(*columns, strict=True)),
    ]


def confirm(group: Group, first_seq: int, issued_ms: int, codes: Sequence[str]) -> list[Confirmation]:
    """Confirmations of a group whose vouchers are numbered from `first_seq`."""
    _, _, numbers, _, places, _, _ = zip(*group.grants, strict=True)
    seqs = range(first_seq, first_seq + len(numbers))
    rows = zip(places, repeat(int(Verdict.COMMITTED)), seqs, repeat(issued_ms), codes, numbers, strict=False)
    return list(map(Confirmation._make, rows))


def _join_unless_shared(column: Sequence[str]) -> str:
    """Empty where all values are one, so that an empty text never stands for one empty value."""
    return "" if column.count(column[0]) == len(column) else _join(column)


def _join(column: Sequence[str]) -> str:
    joined = SEPARATOR.join(column)
    if joined.count(SEPARATOR) != len(column) - 1:
        raise MalformedEntry("a grant has a control character in it")
    return joined
