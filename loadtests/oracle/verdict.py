"""The verdict: what was judged, what was found, and what proves it. Plain data, written as JSON."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

EXIT_KEPT: Final = 0
EXIT_BROKEN: Final = 1

EXAMPLES_MAX_COUNT: Final = 5
"""Counter-examples kept per rule; one is already too many, a thousand teach no more than five."""
PROOFS_MAX_COUNT: Final = 12
"""Records shown per counter-example."""


class Promise(StrEnum):
    """What a deployment is held to."""

    TOO_MANY = "none too many"
    TOO_FEW = "none too few"
    STANDS = "confirmed means for ever"
    ONE_ANSWER = "one request, one answer"
    IN_ORDER = "no wrong refusal"
    BUDGETS = "within the budgets"


class Standing(StrEnum):
    """How a rule or a promise stands."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_JUDGED = "not judged"


class Proof(msgspec.Struct, frozen=True):
    """One recorded request, as it is shown to an operator: no person token, no code of a voucher."""

    person: str
    """Pseudonym of the person token, new with every verdict."""
    out_request_no: str
    drop_id: str
    worker: str
    action: str
    sent_ms: float
    """Since the run began; of what the oracle asked, too."""
    answered_ms: float
    status: int
    code: str
    voucher: str
    """Name and pseudonymous code of the voucher answered; empty without one."""


class CounterExample(msgspec.Struct, frozen=True):
    """One case that speaks against a promise."""

    says: str
    drop_id: str
    numbers: Sequence[str]
    """The request numbers concerned; their records are the proof."""
    proofs: Sequence[Proof] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule found."""

    rule: str
    """What must hold, in one sentence."""
    promise: Promise
    checked_count: int
    broken_count: int
    excused: Mapping[str, int] = {}
    """Why so many cases could not be judged: reason -> drops or answers left out."""
    examples: Sequence[CounterExample] = ()

    @property
    def standing(self) -> Standing:
        """Broken by one case; not judged where nothing could be checked."""
        if self.broken_count:
            return Standing.BROKEN
        return Standing.KEPT if self.checked_count else Standing.NOT_JUDGED


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One figure held against its limit."""

    name: str
    measured: float
    limit: float | None
    """None: measured and shown, no limit given."""
    unit: str
    """`ms` or `share`."""
    over: str
    """What was measured, in words."""
    count: int
    """Over how many."""

    @property
    def standing(self) -> Standing:
        """Kept up to and including the limit."""
        if self.limit is None or not self.count:
            return Standing.NOT_JUDGED
        return Standing.KEPT if self.measured <= self.limit else Standing.BROKEN


class DropRow(msgspec.Struct, frozen=True, kw_only=True):
    """A drop at rest, for the table of the report."""

    drop_id: str
    state: str
    quantity: int
    available: int
    pending: int
    issued: int
    ledger_count: int
    persons_refused: int
    """Persons who were told sold out and hold nothing."""
    first_grant_ms: float | None = None
    """Earliest voucher answered, since the run began."""
    sold_out_ms: float | None = None
    """As the deployment says, on the run's clock, since it began."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """The run over time, in buckets of `bucket_ms`; every sequence has one value per bucket."""

    bucket_ms: float
    outcomes: Mapping[str, Sequence[int]]
    """Answers by outcome, at the time they came."""
    latencies_ms: Mapping[str, Sequence[float | None]]
    """`p50`, `p90`, `p99` of grabs answered, from the time they were due; None: none in the bucket."""
    stock: Mapping[str, Sequence[int]]
    """`available`, `pending`, `issued` of all drops together; empty without samples."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the oracle says of a run."""

    scenario: str
    host: str
    started_ms: float
    ended_ms: float
    judged_ms: float
    took_s: float
    """How long judging took, with asking again."""
    peak_memory_bytes: int
    """Of the process that judged."""
    requests_count: int
    numbers_count: int
    persons_count: int
    asked_again_count: int
    """Requests the oracle itself sent."""
    findings: Sequence[Finding]
    budgets: Sequence[Budget]
    drops: Sequence[DropRow]
    outcomes: Mapping[str, int]
    series: Series
    remarks: Sequence[str] = ()
    """What a reader should know: files cut off, drops rebuilt during the run."""

    def of(self, promise: Promise) -> Sequence[Finding]:
        """The findings on one promise."""
        return [finding for finding in self.findings if finding.promise is promise]

    def standing(self, promise: Promise) -> Standing:
        """How one promise stands: one broken rule breaks it, one judged rule is needed to keep it."""
        found = [part.standing for part in self.of(promise)]
        if promise is Promise.BUDGETS:
            found += [budget.standing for budget in self.budgets]
        for standing in (Standing.BROKEN, Standing.KEPT):
            if standing in found:
                return standing
        return Standing.NOT_JUDGED

    @property
    def kept(self) -> bool:
        """Whether nothing was found broken."""
        return all(self.standing(promise) is not Standing.BROKEN for promise in Promise)

    @property
    def exit_code(self) -> int:
        """0 kept, 1 broken."""
        return EXIT_KEPT if self.kept else EXIT_BROKEN
