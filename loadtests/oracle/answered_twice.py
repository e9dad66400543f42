"""No two numbers are answered with the same voucher: judged from answers alone, without the ledger."""

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
        self._numbers: Final[dict[str | tuple[str, int] | tuple[str, str], str]] = {}
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
        case = None
        for shown, what in (
            (voucher.voucher_id, voucher.voucher_id),
            ((drop, voucher.seq), f"seq {voucher.seq:,}"),
            ((drop, voucher.code), "one code"),
        ):
            before = self._numbers.setdefault(shown, number)
            if before != number and case is None:
                case = Case(f"{what} was answered to two numbers", (before, number), drop)
        self.tally.expect(case)
