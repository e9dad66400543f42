"""No two numbers are answered with the same voucher: judged from answers alone, without the ledger."""

from collections import defaultdict
from typing import Final

from loadtests.oracle.rulebook import Case, Tally
from loadtests.oracle.tracks import read_voucher
from loadtests.oracle.verdict import Promise
from loadtests.records import Answered


class AnsweredTwice:
    """Remembers which number was answered with which voucher.

    A voucher is one number's own, and names (`voucher_id`, and `seq` within a drop) are never
    given twice, so two numbers that show the same one are wrong whenever they were answered. Codes
    are unique within a program, which is not known here: they are compared within a drop.
    """

    def __init__(self) -> None:
        self._by_name: Final[dict[str, str]] = {}
        self._by_seq: Final[defaultdict[str, dict[int, str]]] = defaultdict(dict)
        self._by_code: Final[defaultdict[str, dict[str, str]]] = defaultdict(dict)
        self.tally: Final = Tally(
            Promise.TOO_MANY, "No two numbers were answered with the same number, name or code of a voucher"
        )

    def add(self, record: Answered) -> None:
        """Take one record in; answers without a voucher are passed over."""
        if record.status != 201:  # noqa: PLR2004 - what is repeated says nothing new
            return
        voucher = read_voucher(record.voucher)
        if voucher is None:
            return  # another rule's concern
        number = record.out_request_no
        drop = record.drop_id
        shown = (
            (self._by_name.setdefault(voucher.voucher_id, number), voucher.voucher_id),
            (self._by_seq[drop].setdefault(voucher.seq, number), f"seq {voucher.seq:,}"),
            (self._by_code[drop].setdefault(voucher.code, number), "one code"),
        )
        twice = ((before, what) for before, what in shown if before != number)
        before, what = next(twice, ("", ""))
        case = Case(f"{what} was answered to two numbers", (before, number), drop) if what else None
        self.tally.expect(case)
