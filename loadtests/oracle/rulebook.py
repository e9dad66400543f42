"""How rules are written and counted.

A rule is one small function. Its docstring says why it is sound: why no correct deployment can
break it, whatever ran at the same time. A rule that cannot be sure excuses the case and says why.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from loadtests.oracle.evidence import DropEvidence, Evidence
from loadtests.oracle.tracks import Track
from loadtests.oracle.verdict import EXAMPLES_MAX_COUNT, CounterExample, Finding, Promise, Proof
from loadtests.records import Answered


class Case(NamedTuple):
    """One violation: what is wrong, and the numbers whose records prove it."""

    says: str
    numbers: tuple[str, ...] = ()
    drop_id: str = ""


Excuse = Callable[[Evidence, DropEvidence], str]
"""Why a rule cannot judge a drop; an empty text where it can."""
Judge = Callable[[Evidence, DropEvidence, Track, Answered], str | Case | None]
Sweep = Callable[[Evidence], Iterator[Case | None]]
"""Yields None for every case that is as it must be, and a Case for every one that is not."""


class RecordRule(NamedTuple):
    """Judges single records, once everything else is known."""

    promise: Promise
    rule: str
    looks_at: frozenset[str | int]
    """Problem codes, or statuses below 400."""
    judge: Judge
    excuses: tuple[Excuse, ...]


class SweepRule(NamedTuple):
    """Judges the evidence as a whole: drops, tracks or samples."""

    promise: Promise
    rule: str
    sweep: Sweep


MISSING: Final = "records of the run are missing"
OTHERS: Final = "others grabbed from these drops during the run"

RECORD_RULES: Final[list[RecordRule]] = []
SWEEP_RULES: Final[list[SweepRule]] = []


def record_rule(
    promise: Promise, rule: str, *looks_at: str | int, excuses: Sequence[Excuse] = ()
) -> Callable[[Judge], Judge]:
    """Register a rule over single records."""

    def register(judge: Judge) -> Judge:
        RECORD_RULES.append(RecordRule(promise, rule, frozenset(looks_at), judge, tuple(excuses)))
        return judge

    return register


def sweep_rule(promise: Promise, rule: str) -> Callable[[Sweep], Sweep]:
    """Register a rule over the evidence as a whole."""

    def register(sweep: Sweep) -> Sweep:
        SWEEP_RULES.append(SweepRule(promise, rule, sweep))
        return sweep

    return register


class Excused(Exception):
    """A sweep meets something it cannot judge and has judged nothing else; the message says why."""


class Tally:
    """Counts one rule's cases and keeps the first violations."""

    def __init__(self, promise: Promise, rule: str) -> None:
        self.promise: Final = promise
        self.rule: Final = rule
        self.checked_count = 0
        self.broken_count = 0
        self.excused: Final[Counter[str]] = Counter()
        self.cases: Final[list[Case]] = []

    def broken(self, case: Case) -> None:
        """Count a violation."""
        self.broken_count += 1
        if len(self.cases) < EXAMPLES_MAX_COUNT:
            self.cases.append(case)

    def expect(self, case: Case | None) -> None:
        """Count a case, and the violation if it is one."""
        self.checked_count += 1
        if case is not None:
            self.broken(case)

    def finding(self, proofs: Mapping[str, Sequence[Proof]]) -> Finding:
        """What was found; `proofs` are the records by number."""
        return Finding(
            rule=self.rule,
            promise=self.promise,
            checked_count=self.checked_count,
            broken_count=self.broken_count,
            excused=dict(self.excused),
            examples=[
                CounterExample(
                    says=case.says,
                    drop_id=case.drop_id,
                    numbers=case.numbers,
                    proofs=[proof for number in case.numbers for proof in proofs.get(number, ())],
                )
                for case in self.cases
            ],
        )


class RecordJudging:
    """Runs every record rule over the stream of records."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence: Final = evidence
        self.tallies: Final = [Tally(rule.promise, rule.rule) for rule in RECORD_RULES]
        self._rules: Final[dict[str | int, list[tuple[RecordRule, Tally]]]] = {}
        for rule, tally in zip(RECORD_RULES, self.tallies, strict=True):
            for key in rule.looks_at:
                self._rules.setdefault(key, []).append((rule, tally))
        self._excuses: Final[dict[tuple[str, str], str]] = {}

    def judge(self, record: Answered) -> None:
        """Judge one record; it was observed before."""
        rules = self._rules.get(record.code or record.status)
        drop = self._evidence.drops.get(record.drop_id)
        track = self._evidence.book.of(record) if rules else None
        if rules is None or drop is None or track is None:
            return
        for rule, tally in rules:
            reason = self._excuse(rule, drop) if rule.excuses else ""
            if reason:
                tally.excused[reason] += 1
                continue
            found = rule.judge(self._evidence, drop, track, record)
            if isinstance(found, str):
                found = Case(found, (record.out_request_no,), record.drop_id)
            tally.expect(found)

    def _excuse(self, rule: RecordRule, drop: DropEvidence) -> str:
        key = (rule.rule, drop.drop_id)
        reason = self._excuses.get(key)
        if reason is None:
            reasons = (excuse(self._evidence, drop) for excuse in rule.excuses)
            reason = self._excuses[key] = next((text for text in reasons if text), "")
        return reason


def judge_sweeps(evidence: Evidence) -> list[Tally]:
    """Run every rule over the evidence as a whole."""
    tallies = []
    for promise, rule, sweep in SWEEP_RULES:
        tally = Tally(promise, rule)
        try:
            for case in sweep(evidence):
                tally.expect(case)
        except Excused as excused:
            tally.excused[str(excused)] += 1
        tallies.append(tally)
    return tallies


# --- excuses ------------------------------------------------------------------------------------
def disturbed(_evidence: Evidence, drop: DropEvidence) -> str:
    """In trouble, grants may be lost and decided anew (contract: 503), so time order proves nothing."""
    return f"the deployment was disturbed during the run ({drop.disturbed})" if drop.disturbed else ""


def restocked(_evidence: Evidence, drop: DropEvidence) -> str:
    """Stock added during the run makes an earlier `sold_out` and a later voucher both right."""
    return "the drop was restocked or defined anew during the run" if drop.restocked else ""


def redefined(_evidence: Evidence, drop: DropEvidence) -> str:
    """A window may be extended while it is open."""
    return "the drop was defined anew during the run" if drop.redefined else ""


def incomplete(evidence: Evidence, _drop: DropEvidence) -> str:
    """Where records are missing, a request may have been made that nobody knows of."""
    return "" if evidence.complete else MISSING


def shared(evidence: Evidence, _drop: DropEvidence) -> str:
    """Others grabbed too: what they asked is not recorded."""
    return "" if evidence.facts.exclusive else OTHERS


def issued_before(_evidence: Evidence, drop: DropEvidence) -> str:
    """Vouchers of an earlier run have requests that nobody recorded."""
    return "vouchers stood before the run" if drop.definition.issued_before else ""
