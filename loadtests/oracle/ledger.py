"""Reading a drop's ledger: every row is checked as it passes and marked in the index, none is kept."""

from collections import Counter, defaultdict
from typing import Final

from loadtests.oracle.evidence import DropEvidence, Evidence
from loadtests.oracle.rulebook import MISSING, OTHERS, Case, Tally
from loadtests.oracle.tracks import Seen, VoucherName, read_voucher, row_digest
from loadtests.oracle.verdict import Promise


class LedgerAudit:
    """The rules about rows. Feed every drop's lines in order, then read the tallies."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence: Final = evidence
        self._codes: Final[defaultdict[str, dict[str, str]]] = defaultdict(dict)
        self._names: Final[set[str]] = set()
        self._persons: Final[defaultdict[str, Counter[str]]] = defaultdict(Counter)
        self.gaps: Final = Tally(Promise.TOO_FEW, "Numbers in a drop's ledger are 1, 2, 3 … without a gap")
        self.repeats: Final = Tally(
            Promise.TOO_MANY, "No number, name or code of a voucher stands twice in the ledger"
        )
        self.limits: Final = Tally(Promise.TOO_MANY, "Nobody has more rows of a drop than one may hold")
        self.asked: Final = Tally(Promise.TOO_MANY, "Every row was asked for, by the person it names")
        self.numbers: Final = Tally(Promise.ONE_ANSWER, "A request number has one row at most")
        self.vouchers: Final = Tally(Promise.STANDS, "Every line of the ledger is a voucher of its drop")

    @property
    def tallies(self) -> list[Tally]:
        """All of them."""
        return [self.gaps, self.repeats, self.limits, self.asked, self.numbers, self.vouchers]

    def read(self, drop: DropEvidence, line: bytes) -> int:
        """Check the drop's next line; returns its seq, 0 where it is no voucher."""
        row = read_voucher(line)
        drop.rows_count += 1
        self.vouchers.checked_count += 1
        if row is None or row.drop_id != drop.drop_id:
            self.vouchers.broken(Case("a line that is no voucher of this drop", (), drop.drop_id))
            return row.seq if row else 0
        self._check_number(drop, row)
        self._check_person(drop, row)
        self._mark(drop, row, row_digest(line))
        return row.seq

    def follows(self, drop: DropEvidence, before: int, seq: int) -> None:
        """Check that `seq` comes right after `before`.

        The service hands out numbers under the drop's lock and the export is in their order, so at
        rest, and even while the drop is open, every prefix is whole.
        """
        missing = seq - before - 1
        says = f"after {before:,} comes {seq:,}"
        self.gaps.expect(Case(says, (), drop.drop_id) if missing > 0 else None)
        self.repeats.expect(Case(f"{seq:,} stands twice", (), drop.drop_id) if missing < 0 else None)

    def _check_number(self, drop: DropEvidence, row: VoucherName) -> None:
        """Names are unique everywhere, codes within a program (they are a permutation by its key)."""
        program = drop.figures.program_id if drop.figures else ""
        before = self._codes[program].setdefault(row.code, row.out_request_no)
        case = None
        if before != row.out_request_no:
            case = Case("one code on two vouchers", (before, row.out_request_no), drop.drop_id)
        elif row.voucher_id in self._names:
            case = Case(f"{row.voucher_id} stands twice", (row.out_request_no,), drop.drop_id)
        self._names.add(row.voucher_id)
        self.repeats.expect(case)

    def _check_person(self, drop: DropEvidence, row: VoucherName) -> None:
        """A pseudonym is one partner's own: where others grabbed too, only this run's rows count."""
        mine = row.out_request_no in self._evidence.book.tracks
        if not self._evidence.facts.exclusive and not mine:
            return
        persons, limit = self._persons[drop.drop_id], drop.definition.per_person_limit
        persons[row.person_token] += 1
        held = persons[row.person_token]
        says = f"one person has {held} rows, {limit} allowed"
        numbers = (row.out_request_no,)
        self.limits.expect(Case(says, numbers, drop.drop_id) if held > limit else None)

    def _mark(self, drop: DropEvidence, row: VoucherName, digest: bytes) -> None:
        number = row.out_request_no
        head = self._evidence.book.tracks.get(number)
        if head is None:
            self._mark_foreign(drop, row, digest)
            return
        stands = [track for track in head.chain() if track.seen & Seen.IN_LEDGER]
        self.numbers.expect(Case("two rows for one number", (number,), drop.drop_id) if stands else None)
        for track in head.chain():
            if (track.drop_id, track.person_token) == (row.drop_id, row.person_token):
                track.seen |= Seen.IN_LEDGER
                track.row_digest = track.row_digest or digest
                self.asked.expect(None)
                return
        says = "the row names another person or drop than any request with this number"
        self.asked.expect(Case(says, (number,), drop.drop_id))

    def _mark_foreign(self, drop: DropEvidence, row: VoucherName, digest: bytes) -> None:
        """A row whose number this run never used: from before it, or of somebody else, or invented."""
        drop.row_numbers_foreign[row.out_request_no] = digest
        if row.seq <= drop.definition.issued_before:
            return
        if not self._evidence.facts.exclusive:
            self.asked.excused[OTHERS] += 1
        elif not self._evidence.complete:
            self.asked.excused[MISSING] += 1
        else:
            says = f"row {row.seq:,} has a number that was never asked for"
            self.asked.expect(Case(says, (row.out_request_no,), drop.drop_id))
