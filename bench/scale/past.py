"""A believable past: sold-out drops of several cities, week by week, and the rows they left behind.

Pure: no server, no clock. The same plan always yields the same rows, byte for byte, except for
the till codes, which are those of the program's own key.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Final, NamedTuple

from couponsvc.ledger.codes import CodeBook

DROP_MAX_COUNT: Final = 250_000
"""Vouchers of one past drop: a large city's weekly stock."""
COMMIT_COUNT: Final = 400
"""Vouchers that one commit of a drainer wrote in a rush; each has one outbox row."""
COMMIT_EVERY_MS: Final = 40
"""Time between two commits: ten thousand vouchers a second."""
OTHER_PROGRAMS: Final = ("harbin-2022", "jinan-2022", "yantai-2022")
PERSON_HEX_CHARS: Final = 16
NUMBER_HEX_CHARS: Final = 32
"""Partners number requests with random UUIDs: the unkind case, because every insert meets another
page of the index on `out_request_no`."""


class PastDrop(NamedTuple):
    """A drop that is over."""

    program_id: str
    drop_id: str
    opens_at: datetime
    """In UTC, whole milliseconds."""
    quantity: int
    """All of it was issued."""

    @property
    def closes_at(self) -> datetime:
        """Ten and a half hours later."""
        return self.opens_at + timedelta(hours=10, minutes=30)

    @property
    def sold_out_at(self) -> datetime:
        """When the last commit was made."""
        return self.opens_at + timedelta(milliseconds=(self.quantity - 1) // COMMIT_COUNT * COMMIT_EVERY_MS)


def plan_past(count: int, program_id: str, own_count: int, before: datetime) -> list[PastDrop]:
    """Drops that issued `count` vouchers in all, oldest last.

    Args:
        count: Vouchers in all.
        program_id: The program that goes on; its past drops come first.
        own_count: How many of `count` were its own.
        before: The newest drop opened a week before this, the next a week earlier, …

    Raises:
        ValueError: `own_count` is more than `count`.
    """
    if not 0 <= own_count <= count:
        raise ValueError(f"{own_count} of {count} vouchers cannot be of {program_id}")
    drops = _weekly(own_count, [program_id], before)
    return drops + _weekly(count - own_count, OTHER_PROGRAMS, before)


def _weekly(count: int, program_ids: Sequence[str], before: datetime) -> list[PastDrop]:
    drops: list[PastDrop] = []
    while count > 0:
        quantity = min(count, DROP_MAX_COUNT)
        week, place = divmod(len(drops), len(program_ids))
        opens_at = (before - timedelta(weeks=week + 1)).replace(microsecond=0)
        program_id = program_ids[place]
        drop_id = f"{program_id}-{opens_at:%Y%m%d}-dining-20"
        drops.append(PastDrop(program_id, drop_id, opens_at, quantity))
        count -= quantity
    return drops


def voucher_rows(
    drop: PastDrop, drop_no: int, partner_nos: Sequence[int], book: CodeBook
) -> Iterator[tuple[int, bytes]]:
    """The drop's vouchers as `COPY … FROM` text, one chunk per commit; `(vouchers, text)`.

    Columns: see `COLUMNS`. Persons differ between drops and within one.
    """
    random = Random(drop.drop_id)  # noqa: S311 - reproducible, and nobody's secret
    person_bytes, number_bytes = PERSON_HEX_CHARS // 2, NUMBER_HEX_CHARS // 2
    for commit_no, first in enumerate(range(1, drop.quantity + 1, COMMIT_COUNT)):
        size = min(COMMIT_COUNT, drop.quantity + 1 - first)
        persons = random.randbytes(size * person_bytes).hex(" ", person_bytes).split(" ")
        numbers = random.randbytes(size * number_bytes).hex(" ", number_bytes).split(" ")
        codes = book.codes(drop_no, first, size)
        moment = drop.opens_at + timedelta(milliseconds=commit_no * COMMIT_EVERY_MS)
        partner_no = partner_nos[commit_no % len(partner_nos)]
        # What all rows of a commit share, between what they do not.
        head, middle = f"{drop_no}\t", f"\t{partner_no}\t1\t{moment.isoformat()}\tp-"
        seqs = range(first, first + size)
        lines = [
            f"{head}{seq}{middle}{person}\t{number}\t{code}\tapp\t370200\n"
            for seq, person, number, code in zip(seqs, persons, numbers, codes, strict=True)
        ]
        yield size, "".join(lines).encode("ascii")


COLUMNS: Final = (
    "drop_no",
    "seq",
    "partner_no",
    "ordinal",
    "issued_at",
    "person_token",
    "out_request_no",
    "code",
    "channel",
    "region",
)
"""Of `voucher_rows`."""
