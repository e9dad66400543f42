"""What the rules judge from: the run's records, the drops as they came to rest, and clocks."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from loadtests.oracle.tracks import NEVER_MS, Book, Moment, Moments, Seen, VoucherName, row_digest
from loadtests.records import (
    OPERATOR,
    ORACLE,
    Answered,
    Clock,
    DropDefinition,
    DropSample,
    Operation,
    RunFacts,
)

REBUILDING: Final = "rebuilding"
SOLD_OUT: Final = "sold_out"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/drops/{drop_id}`, as far as the oracle looks at it."""

    drop_id: str
    program_id: str = ""
    quantity: int
    per_person_limit: int
    state: str
    available: int
    pending: int
    issued: int
    sold_out_at: str | None = None


class Taker(NamedTuple):
    """A request that can have held a unit: when it was first sent, by whose clock."""

    sent_ms: float
    worker: str


class DropEvidence:
    """One drop of the run: how it was defined, what was done to it, and how it came to rest."""

    def __init__(self, definition: DropDefinition, operations: Sequence[Operation]) -> None:
        self.definition: Final = definition
        self.drop_id: Final = definition.drop_id
        self.operations: Final = operations
        stock = [op for op in operations if op.what in {"restock", "define"}]
        self.restocked: Final = bool(stock)
        self.restocked_ms: Final = max((op.answered_ms for op in stock), default=-NEVER_MS)
        self.redefined: Final = any(op.what == "define" for op in operations)
        self.quantities: Final = {definition.quantity, *(op.quantity_after for op in stock)} - {0}
        self.disturbed = ""
        """The sign of trouble that was seen; empty for an undisturbed drop."""
        self.figures: Figures | None = None
        """At rest, after the ledger was read."""
        self.rows_count = 0
        self.takers: Final[list[Taker]] = []
        self.otherwise_count = 0
        """Numbers asked of this drop that were also used for another drop or person."""
        self.row_numbers_foreign: Final[dict[str, bytes]] = {}
        """Rows whose numbers this run never used: number -> digest of the row."""
        self.refused_persons: Final[set[str]] = set()
        """Told sold out, and nothing of theirs stands."""
        self.all_taken_ms: Final[dict[str, float]] = {}
        """By worker: before this moment of its clock, a unit was certainly left."""

    @property
    def quantity_min(self) -> int:
        """The smallest quantity the drop had during the run."""
        return min(self.quantities)

    def find_when_all_were_taken(self, clocks: "Clocks", workers: Iterable[str]) -> None:
        """Fill `all_taken_ms` from `takers`.

        Takers on the worker's own clock count from when they sent; those of others from the earliest
        moment of this worker's clock at which that can have been.
        """
        for worker in workers:
            earliest = sorted(clocks.earliest(taker.sent_ms, taker.worker, worker) for taker in self.takers)
            short = len(earliest) < self.quantity_min
            self.all_taken_ms[worker] = NEVER_MS if short else earliest[self.quantity_min - 1]


class Clocks:
    """Comparisons between clocks: exact within one, with tolerances between two."""

    def __init__(self, facts: RunFacts) -> None:
        self._clocks: Final = dict(facts.clocks)
        self._unknown: Final = Clock()

    def of(self, worker: str) -> Clock:
        """How a worker's clock relates to the deployment's."""
        return self._clocks.get(worker, self._unknown)

    def earliest(self, at_ms: float, worker: str, on: str) -> float:
        """The earliest time of clock `on` that `at_ms` of `worker`'s can have been."""
        if worker == on:
            return at_ms
        return at_ms + self._shift(worker, on) - self._tolerance(worker, on)

    def certainly_before(self, first_ms: float, first: str, second_ms: float, second: str) -> bool:
        """Whether `first_ms` of one clock was before `second_ms` of another for sure.

        What the oracle asked came after everything that workers and operators did.
        """
        if first == second:
            return first_ms < second_ms
        if ORACLE in {first, second}:
            return second == ORACLE
        return first_ms + self._shift(first, second) + self._tolerance(first, second) < second_ms

    def deployed(self, at_ms: float, worker: str) -> tuple[float, float]:
        """The earliest and latest deployment's time that a worker's time can have been."""
        clock = self.of(worker)
        middle = at_ms + clock.offset_ms
        return middle - clock.tolerance_ms, middle + clock.tolerance_ms

    def _shift(self, source: str, target: str) -> float:
        return self.of(source).offset_ms - self.of(target).offset_ms

    def _tolerance(self, source: str, target: str) -> float:
        return self.of(source).tolerance_ms + self.of(target).tolerance_ms


class Evidence:
    """Everything the rules may look at."""

    def __init__(self, facts: RunFacts, samples: Sequence[DropSample]) -> None:
        self.facts: Final = facts
        self.clocks: Final = Clocks(facts)
        self.book: Final = Book()
        self.samples: Final = samples
        operations: dict[str, list[Operation]] = defaultdict(list)
        for operation in facts.operations:
            operations[operation.drop_id].append(operation)
        self.drops: Final = {
            definition.drop_id: DropEvidence(definition, operations[definition.drop_id])
            for definition in facts.drops
        }
        self.sold_out: Final[Moments] = defaultdict(Moment)
        """When a drop was first called sold out for good, after its last restocking."""
        self.ended: Final[Moments] = defaultdict(Moment)
        """When a drop was first called ended."""
        self.workers: Final[set[str]] = set()
        self.complete = facts.complete
        """Whether a missing record proves that nothing was asked."""
        self._numbers: Counter[tuple[str, str]] | None = None
        self.settled = True
        """Whether every drop came to rest in time."""

    def observe(self, record: Answered) -> None:
        """Take one record in."""
        self.book.observe(record)
        self.workers.add(record.worker)
        if record.retryable is not False or not record.code:
            return
        drop = self.drops.get(record.drop_id)
        if drop is None:
            return
        if record.code == SOLD_OUT and self._since_restocking(drop, record):
            self.sold_out[record.drop_id, record.worker].note(record.answered_ms, record.out_request_no)
        elif record.code == "ended" and not drop.redefined:
            self.ended[record.drop_id, record.worker].note(record.answered_ms, record.out_request_no)

    def not_standing(self, drop: DropEvidence, named: VoucherName, voucher: bytes) -> str:
        """Why a voucher that was shown does not stand in the ledger; empty where it does."""
        head = self.book.tracks.get(named.out_request_no)
        standing = drop.row_numbers_foreign.get(named.out_request_no, b"")
        for track in head.chain() if head else ():
            if (track.drop_id, track.person_token) == (named.drop_id, named.person_token):
                standing = track.row_digest
        if not standing:
            return "the voucher shown does not stand in the ledger"
        return "" if standing == row_digest(voucher) else "the voucher shown is not the one in the ledger"

    def numbers_of_person(self, drop_id: str, person_token: str) -> int:
        """How many numbers a person used for a drop, of persons who were told of their limit."""
        if self._numbers is None:
            asked = ((track.drop_id, track.person_token, track.seen) for _, track in self.book)
            limited = {(drop, person) for drop, person, seen in asked if seen & Seen.PERSON_LIMIT}
            every = ((track.drop_id, track.person_token) for _, track in self.book)
            self._numbers = Counter(key for key in every if key in limited)
        return self._numbers[drop_id, person_token]

    def _since_restocking(self, drop: DropEvidence, record: Answered) -> bool:
        if not drop.restocked:
            return True
        return self.clocks.certainly_before(drop.restocked_ms, OPERATOR, record.sent_ms, record.worker)
