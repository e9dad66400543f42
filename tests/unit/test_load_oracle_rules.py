"""Each rule of the oracle finds what is planted for it, and what is right under concurrency breaks none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from loadtests.oracle.evidence import Evidence, Figures
from loadtests.oracle.judging import apply_rules
from loadtests.oracle.ledger import LedgerAudit
from loadtests.oracle.rulebook import RECORD_RULES, SWEEP_RULES, Tally
from loadtests.oracle.tracks import Seen
from loadtests.records import (
    GRAB,
    LOOK_UP,
    OPERATOR,
    ORACLE,
    Answered,
    Clock,
    DropDefinition,
    DropSample,
    Operation,
    RunFacts,
)

OPENS = 1_800_000_000_000.0
CLOSES = OPENS + 60_000.0
DROP = "wed-20"


def voucher(seq: int, person: str, number: str, *, status: str = "issued", drop: str = DROP) -> bytes:
    return (
        f'{{"voucher_id":"vch_7_{seq}","drop_id":"{drop}","seq":{seq},"code":"CODE-{seq}",'
        f'"person_token":"{person}","out_request_no":"{number}","status":"{status}",'
        f'"issued_at":"2027-01-15T08:00:00.000Z"}}'
    ).encode()


@dataclass
class World:
    """A run of two units, of which Ann and Bob each get one, and Cid comes too late."""

    records: list[Answered] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    samples: list[DropSample] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    state: str = "sold_out"
    quantity: int = 2
    available: int = 0
    pending: int = 0
    open_numbers: Sequence[str] = ()
    exclusive: bool = True
    complete: bool = True
    issued_before: int = 0
    issued_since: int = 0
    """After the ledger was read."""

    def asked(
        self,
        person: str,
        number: str,
        at: float,
        status: int,
        code: str = "",
        *,
        retryable: bool = False,
        shows: bytes = b"",
        took: float = 10.0,
        worker: str = "w-1",
        action: str = GRAB,
    ) -> "World":
        """One request, sent `at` ms after the opening and answered `took` ms later."""
        sent = OPENS + at
        self.records.append(
            Answered(
                sent,
                sent + took,
                sent,
                worker,
                action,
                DROP,
                person,
                number,
                status,
                code,
                retryable if code else None,
                shows,
            )
        )
        return self

    def did(self, what: str, at: float, quantity: int = 0) -> "World":
        """Something the operator did, answered 5 ms later."""
        self.operations.append(
            Operation(
                drop_id=DROP,
                what=what,
                sent_ms=OPENS + at,
                answered_ms=OPENS + at + 5,
                quantity_after=quantity,
            )
        )
        return self

    def broken(self) -> set[str]:
        """The rules that are broken."""
        return {tally.rule for tally in self.tallies() if tally.broken_count}

    def tallies(self) -> list[Tally]:
        clock = Clock(tolerance_ms=2.0)
        facts = RunFacts(
            scenario="rush",
            host="http://127.0.0.1",
            started_ms=OPENS - 1_000,
            ended_ms=OPENS + 1_000,
            persons=3,
            drops=[
                DropDefinition(
                    drop_id=DROP,
                    quantity=2,
                    per_person_limit=1,
                    opens_ms=OPENS,
                    closes_ms=CLOSES,
                    issued_before=self.issued_before,
                )
            ],
            operations=self.operations,
            clocks=dict.fromkeys(("w-1", "w-2", OPERATOR), clock),
            exclusive=self.exclusive,
            complete=self.complete,
        )
        evidence = Evidence(facts, self.samples)
        for record in self.records:
            evidence.observe(record)
        for number in self.open_numbers:
            evidence.book.tracks[number].seen |= Seen.OPEN
        audit = LedgerAudit(evidence)
        drop, before = evidence.drops[DROP], 0
        for line in self.rows:
            seq = audit.read(drop, line)
            audit.follows(drop, before, seq)
            before = max(before, seq)
        drop.figures = Figures(
            drop_id=DROP,
            quantity=self.quantity,
            per_person_limit=1,
            state=self.state,
            available=self.available,
            pending=self.pending,
            issued=len(self.rows) + self.issued_since,
        )
        return [*apply_rules(evidence, self.records), *audit.tallies]


ANNS, BOBS = voucher(1, "ann", "n-1"), voucher(2, "bob", "n-2")


def good() -> World:
    world = World(rows=[ANNS, BOBS])
    world.asked("ann", "n-1", 1, 201, shows=ANNS).asked("ann", "n-1", 20, 200, shows=ANNS)
    world.asked("ann", "n-1b", 21, 409, "person_limit", shows=ANNS)
    world.asked("bob", "n-2", 2, 0, "abandoned").asked("bob", "n-2", 30, 200, shows=BOBS)
    world.asked("cid", "n-3", 15, 409, "sold_out", retryable=True).asked("cid", "n-3", 40, 409, "sold_out")
    return world.asked("eve", "n-4", -20, 409, "not_started", retryable=True)


def bare() -> World:
    """Nothing was asked, nothing issued."""
    return World(state="open", available=2)


def test_a_correct_run_breaks_nothing_and_nearly_every_rule_has_judged_it() -> None:
    assert good().broken() == set()
    assert sum(tally.checked_count > 0 for tally in good().tallies()) >= 14


def test_an_empty_run_breaks_nothing() -> None:
    assert bare().broken() == set()


def pending(number: str, *, open_still: bool) -> World:
    world = good().asked("dan", number, 3, 202)
    world.open_numbers = (number,) if open_still else ()
    return world


def sampled(*samples: tuple[str, int, int, int]) -> World:
    world = good()
    world.samples = [
        DropSample(DROP, OPENS + place, state, available, waiting, issued)
        for place, (state, available, waiting, issued) in enumerate(samples)
    ]
    return world


def late_grant(code: str) -> World:
    world = World(rows=[ANNS], state="open", available=1).asked("cid", "n-3", 5, 409, code)
    return world.asked("ann", "n-1", 50, 201, shows=ANNS)


def rows(*lines: bytes) -> World:
    world = good()
    world.rows = list(lines)
    return world


def figured(available: int = 0, pending: int = 0) -> World:
    world = good()
    world.available, world.pending = available, pending
    return world


def restocked() -> World:
    world = World(rows=[ANNS, BOBS, voucher(3, "dan", "n-5")], quantity=3)
    world.asked("ann", "n-1", 1, 201, shows=ANNS).asked("bob", "n-2", 2, 201, shows=BOBS)
    world.asked("cid", "n-3", 20, 409, "sold_out").did("restock", 50, quantity=3)
    world.asked("dan", "n-5", 70, 201, shows=world.rows[2])
    return world.asked("cid", "n-3", 90, 409, "sold_out")


def mistaken() -> World:
    """Zoe uses Ann's number: her grant is refused by the ledger and its unit goes back."""
    world = World(rows=[ANNS], state="open", available=1)
    world.asked("ann", "n-1", 1, 201, shows=ANNS).asked("zoe", "n-1", 2, 409, "request_mismatch")
    return world.asked("cid", "n-3", 5, 409, "sold_out", retryable=True)


def stood_before() -> World:
    world = good()
    world.rows = [voucher(1, "old", "o-1"), BOBS]
    world.records = [record for record in world.records if record.out_request_no not in {"n-1", "n-1b"}]
    world.issued_before = 1
    return world


def shared() -> World:
    world = good()
    world.rows, world.quantity, world.exclusive = [*world.rows, voucher(3, "yan", "y-1")], 3, False
    return world


def unseen_first_attempt() -> World:
    world = late_grant("sold_out").asked("dan", "n-5", 8, 409, "sold_out", retryable=True)
    world.rows, world.complete, world.available = [ANNS, voucher(2, "yan", "y-1")], False, 0
    return world


def missing() -> World:
    world = good()
    world.rows, world.complete = [ANNS, voucher(2, "yan", "y-1")], False
    world.records = [record for record in world.records if record.out_request_no != "n-2"]
    return world


# --- what is planted ------------------------------------------------------------------------------
PLANTED: list[tuple[Callable[[], World], str]] = [
    (lambda: good().asked("dan", "n-5", 3, 201, shows=voucher(3, "dan", "n-5")), "Every voucher answered"),
    (lambda: good().asked("ann", "n-1", 50, 200, shows=ANNS + b" "), "Every voucher answered"),
    (lambda: good().asked("ann", "n-1", 50, 200, shows=BOBS), "A voucher names the drop"),
    (lambda: good().asked("ann", "n-1", 50, 200, shows=b"{}"), "A voucher names the drop"),
    (lambda: good().asked("ann", "n-1c", 50, 409, "person_limit"), "Whoever is refused for the person"),
    (
        lambda: good().asked("dan", "n-5", 50, 409, "person_limit", shows=ANNS),
        "Whoever is refused for the person",
    ),
    (
        lambda: good().asked("dan", "n-5", 5, 409, "person_limit", shows=voucher(3, "dan", "n-6")),
        "Whoever is refused for the person",
    ),
    (lambda: pending("n-5", open_still=True), "Every grab answered 202 ended"),
    (
        lambda: good().asked("dan", "n-5", 3, 202).asked("dan", "n-5", 50, 409, "sold_out"),
        "A grab answered 202 was not forgotten",
    ),
    (lambda: sampled(("open", 0, 0, 2), ("open", 1, 0, 1)), "What was counted as issued"),
    (lambda: good().asked("ann", "n-1", 50, 200, shows=ANNS + b" "), "A repeated request"),
    (
        lambda: good().asked("ann", "n-1", 50, 409, "sold_out", retryable=True),
        "Nobody is refused after the same number",
    ),
    (
        lambda: good().asked("ann", "n-1", 50, 404, "unknown_request", retryable=True, action=LOOK_UP),
        "Nobody is refused after the same number",
    ),
    (lambda: good().asked("bob", "n-2", 3, 409, "ended"), "A number that is refused for good"),
    (
        lambda: World(rows=[ANNS], state="open", available=1).asked(
            "ann", "n-1", 1, 409, "paused", retryable=True
        ),
        "A number whose every answer was a refusal",
    ),
    (
        lambda: good().asked("ann", "n-9", 3, 201, shows=voucher(3, "ann", "n-9")),
        "Nobody was answered with more vouchers",
    ),
    (lambda: good().asked("dan", "n-5", 3, 409, "request_mismatch"), "A number is called used otherwise"),
    (
        lambda: good().asked("dan", "n-5", 3, 409, "person_limit", retryable=True),
        "Whoever is told that a voucher is being issued",
    ),
    (lambda: good().asked("dan", "n-5", 3, 404, "unknown_drop"), "A drop that exists is known"),
    (
        lambda: bare().asked("cid", "n-3", 15, 409, "sold_out", retryable=True),
        "Sold out is said only once",
    ),
    (lambda: bare().asked("cid", "n-3", 15, 409, "sold_out"), "A drop that was called sold out for good"),
    (
        lambda: bare().asked("cid", "n-3", 15, 409, "sold_out", retryable=True),
        "Where persons were told sold out",
    ),
    (lambda: late_grant("sold_out"), "Nobody is granted anew after a drop was called sold out"),
    (lambda: late_grant("ended"), "Nobody is granted anew after a drop was called ended"),
    (
        lambda: good().asked("eve", "n-4", 60, 409, "not_started", retryable=True),
        "Nobody is told not started once",
    ),
    (
        lambda: good().asked("eve", "n-4", 3, 409, "not_started", retryable=True),
        "Nobody is told not started after the opening",
    ),
    (lambda: sampled(("sold_out", 0, 0, 2), ("open", 1, 0, 1)), "A drop that showed sold_out"),
    (
        lambda: good().asked(
            "bob", "n-2", 900, 404, "unknown_request", retryable=True, worker=ORACLE, action=LOOK_UP
        ),
        "A standing voucher can be looked up",
    ),
    (
        lambda: World(rows=[ANNS], state="open", available=1).asked("ann", "n-1", -30, 201, shows=ANNS),
        "Nobody is granted before the opening",
    ),
    (
        lambda: World(rows=[ANNS], state="ended", available=1).asked("ann", "n-1", 61_000, 201, shows=ANNS),
        "Nobody is granted after the window",
    ),
    (lambda: good().asked("eve", "n-4", 60, 409, "ended"), "Nobody is told ended before the end"),
    (
        lambda: good().asked("eve", "n-4", 60, 409, "paused", retryable=True),
        "Nobody is told paused unless",
    ),
    (
        lambda: (
            World(rows=[ANNS], state="open", available=1)
            .did("pause", 1)
            .asked("ann", "n-1", 30, 201, shows=ANNS)
            .did("resume", 90)
        ),
        "Nobody is granted anew while a drop is paused",
    ),
    (lambda: rows(ANNS, BOBS, voucher(3, "dan", "n-5")), "A drop has no more rows"),
    (lambda: figured(available=1), "At rest, quantity = available"),
    (lambda: sampled(("open", 1, 0, 2)), "During the run, available + pending"),
    (lambda: figured(pending=1), "After the run no unit stays pending"),
    (lambda: rows(ANNS, voucher(3, "bob", "n-2")), "Numbers in a drop's ledger"),
    (lambda: rows(ANNS, ANNS), "No number, name or code"),
    (lambda: rows(ANNS, voucher(2, "ann", "n-1b")), "Nobody has more rows"),
    (lambda: rows(ANNS, voucher(2, "dan", "n-9")), "Every row was asked for"),
    (lambda: rows(ANNS, voucher(2, "dan", "n-2")), "Every row was asked for"),
    (lambda: rows(ANNS, voucher(2, "ann", "n-1")), "A request number has one row"),
    (lambda: rows(ANNS, b"{}"), "Every line of the ledger"),
]


@pytest.mark.parametrize(("plant", "says"), PLANTED, ids=[says for _, says in PLANTED])
def test_what_is_planted_is_found(plant: Callable[[], World], says: str) -> None:
    assert any(rule.startswith(says) for rule in plant().broken()), plant().broken()


def test_something_is_planted_for_every_rule() -> None:
    every = {rule.rule for rule in RECORD_RULES} | {rule.rule for rule in SWEEP_RULES}
    every |= {tally.rule for tally in bare().tallies()}
    unplanted = {rule for rule in every if not any(rule.startswith(says) for _, says in PLANTED)}
    assert unplanted == set()


# --- what is right, however odd it looks ----------------------------------------------------------
RIGHT: dict[str, Callable[[], World]] = {
    "a unit came back: sold out, then granted under the same number": lambda: good().asked(
        "bob", "n-2", 25, 409, "sold_out", retryable=True
    ),
    "a refusal overtook the voucher: it was sent before the voucher arrived": lambda: good().asked(
        "ann", "n-1", 2, 409, "sold_out", retryable=True
    ),
    "an abandoned request was decided late, after a refusal": lambda: (
        World(rows=[ANNS], state="open", available=1)
        .asked("ann", "n-1", 1, 0)
        .asked("ann", "n-1", 5, 409, "paused", retryable=True)
        .did("pause", 0)
        .did("resume", 20)
    ),
    "asked with respond-async, a confirmed number may be pending": lambda: good().asked(
        "ann", "n-1", 50, 202
    ),
    "not started was sent before the grant's answer, within the clocks' tolerance": lambda: good().asked(
        "eve", "n-4", 0.5, 409, "not_started", retryable=True
    ),
    "another worker was granted while sold out arrived here": lambda: (
        World(rows=[ANNS, BOBS])
        .asked("ann", "n-1", 1, 201, shows=ANNS)
        .asked("bob", "n-2", 16, 201, shows=BOBS, worker="w-2")
        .asked("cid", "n-3", 3, 409, "sold_out")
    ),
    "the drop was restocked after it was called sold out for good": restocked,
    "units were lost in a rebuild and sold again": lambda: (
        good()
        .asked("dan", "n-5", 3, 202)
        .asked("dan", "n-5", 9, 503, "rebuilding", retryable=True)
        .asked("dan", "n-5", 50, 409, "sold_out")
    ),
    "paused is seen from when the operator asked": lambda: (
        good()
        .did("pause", 50)
        .did("resume", 80)
        .asked("eve", "n-4", 45, 409, "paused", retryable=True)
        .asked("eve", "n-4", 84, 409, "paused", retryable=True)
    ),
    "ended is right once an operator began to close": lambda: (
        good().did("close", 50).asked("eve", "n-4", 55, 409, "ended")
    ),
    "a voucher in the ledger has been redeemed since": lambda: rows(
        ANNS.replace(b'"issued"', b'"redeemed"'), BOBS
    ),
    "two numbers of one person at once: one is granted, one waits": lambda: good().asked(
        "bob", "n-2b", 2, 409, "person_limit", retryable=True
    ),
    "a mistaken number held the last unit for a moment": mistaken,
    "vouchers stood before the run": stood_before,
    "others grab too, and their rows are not known": shared,
    "records are missing, so a row may have been asked for": missing,
    "sold out for a number that two workers asked with": lambda: (
        World(rows=[ANNS, BOBS])
        .asked("ann", "n-1", 30, 201, shows=ANNS)
        .asked("ann", "n-1", 1, 0, worker="w-2")
        .asked("bob", "n-2", 2, 201, shows=BOBS)
        .asked("cid", "n-3", 5, 409, "sold_out", retryable=True)
    ),
    "others were issued vouchers after the ledger was read": lambda: World(
        rows=[ANNS], state="open", issued_since=1, exclusive=False
    ).asked("ann", "n-1", 1, 201, shows=ANNS),
    "where records are missing, a first attempt may be among them": unseen_first_attempt,
    "a grant from before the end was confirmed after it": lambda: (
        World(rows=[ANNS], state="ended", available=1)
        .asked("ann", "n-1", 59_990, 202)
        .asked("ann", "n-1", 60_500, 200, shows=ANNS)
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_breaks_nothing(name: str) -> None:
    assert RIGHT[name]().broken() == set()
