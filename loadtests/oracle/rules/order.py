"""Rules about stock in the order of time: nobody is sent away from units that are there."""

from collections.abc import Iterator

from loadtests.oracle.evidence import REBUILDING, SOLD_OUT, DropEvidence, Evidence
from loadtests.oracle.rulebook import (
    MISSING,
    OTHERS,
    Case,
    Excused,
    disturbed,
    incomplete,
    record_rule,
    shared,
    sweep_rule,
)
from loadtests.oracle.tracks import Seen, Track
from loadtests.oracle.verdict import Promise
from loadtests.records import GRAB, ORACLE, Answered


# --- none too few -------------------------------------------------------------------------------
@record_rule(
    Promise.TOO_FEW,
    "Sold out is said only once enough requests had come to hold every unit",
    SOLD_OUT,
    excuses=(disturbed, shared, incomplete),
)
def sold_out_only_when_taken(
    _evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered
) -> str | None:
    """Nothing is available only while every unit is held by a grant, and a grant has a request.

    A grant ends as a row of the ledger, or (its number was used for another drop or person) goes
    back. So at least `quantity` requests of these two kinds were sent before the refusal arrived.
    Rows whose requests are not recorded count as there from the beginning; what another worker
    sent counts from the earliest moment its clock allows; a raised quantity counts as the lowest.
    """
    if record.worker == ORACLE:
        return None
    left = record.answered_ms < drop.all_taken_ms[record.worker]
    return "told sold out while a unit was certainly left" if left else None


@sweep_rule(Promise.TOO_FEW, "A drop that was called sold out for good has issued its whole quantity")
def final_means_all_issued(evidence: Evidence) -> Iterator[Case | None]:
    """`sold_out` with `retryable` false says that Postgres has issued the whole quantity (contract).

    The ledger was read later and never shrinks. Only refusals after the last restocking are looked
    at, so the quantity is the one the drop has now.
    """
    for (drop_id, _), moment in evidence.sold_out.items():
        drop = evidence.drops[drop_id]
        missing = (drop.figures.quantity if drop.figures else 0) - drop.rows_count
        says = f"called sold out for good, and {missing:,} units were never issued"
        yield Case(says, (moment.number,), drop_id) if missing > 0 else None


@sweep_rule(Promise.TOO_FEW, "Where persons were told sold out, no unit stayed behind")
def nothing_stayed_behind(evidence: Evidence) -> Iterator[Case | None]:
    """A refusal that is not final may meet a unit that comes back, but what can come back is known.

    Only a grant whose number is used otherwise goes back, so at most one unit per such use can have
    been missed. Drops in trouble, or with stock added in the run, are left out.
    """
    if not (evidence.complete and evidence.facts.exclusive):
        raise Excused(OTHERS if evidence.complete else MISSING)
    for drop in evidence.drops.values():
        if not drop.refused_persons or drop.disturbed or drop.restocked or drop.figures is None:
            continue
        left = drop.figures.quantity - drop.rows_count
        says = f"{left:,} units stayed, and {len(drop.refused_persons):,} persons were told sold out"
        yield Case(says, (), drop.drop_id) if left > drop.otherwise_count else None


# --- no wrong refusal ---------------------------------------------------------------------------
@record_rule(
    Promise.IN_ORDER,
    "Nobody is granted anew after a drop was called sold out for good",
    200,
    201,
    excuses=(incomplete,),
)
def nothing_after_sold_out(
    evidence: Evidence, drop: DropEvidence, track: Track, record: Answered
) -> Case | None:
    """The final refusal says that everything is issued, and nothing comes back from that.

    The number was first sent after that refusal had arrived, by the same worker's clock, so its
    grant came later. Refusals before the last restocking of the run say nothing.
    """
    if record.worker == ORACLE or track.seen & Seen.MANY_WORKERS:
        return None
    final = evidence.sold_out.get((drop.drop_id, track.worker))
    if final is None or track.first_sent_ms <= final.at_ms:
        return None
    numbers = (final.number, record.out_request_no)
    return Case("granted after the drop had been called sold out for good", numbers, drop.drop_id)


@record_rule(
    Promise.IN_ORDER,
    "Nobody is granted anew after a drop was called ended",
    200,
    201,
    excuses=(incomplete,),
)
def nothing_after_ended(
    evidence: Evidence, drop: DropEvidence, track: Track, record: Answered
) -> Case | None:
    """A window closes once, by one clock. A drop whose window was extended in the run is left out."""
    if record.worker == ORACLE or track.seen & Seen.MANY_WORKERS:
        return None
    ended = evidence.ended.get((drop.drop_id, track.worker))
    if ended is None or track.first_sent_ms <= ended.at_ms:
        return None
    numbers = (ended.number, record.out_request_no)
    return Case("granted after the drop had been called ended", numbers, drop.drop_id)


@record_rule(Promise.IN_ORDER, "Nobody is told not started once a voucher was issued", "not_started")
def not_started_after_a_grant(
    evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered
) -> Case | None:
    """A window that has opened cannot be moved.

    The grant's answer had arrived before this request was sent, by the same clock; what another
    worker saw counts with both tolerances.
    """
    for worker in evidence.workers:
        granted = evidence.book.granted.get((drop.drop_id, worker))
        if granted is not None and evidence.clocks.certainly_before(
            granted.at_ms, worker, record.sent_ms, record.worker
        ):
            numbers = (granted.number, record.out_request_no)
            return Case("told not started after somebody had been granted", numbers, drop.drop_id)
    return None


@sweep_rule(Promise.IN_ORDER, "A drop that showed sold_out never showed units again")
def sold_out_is_for_good(evidence: Evidence) -> Iterator[Case | None]:
    """The state `sold_out` means for good (API description); one observer asked in sequence.

    While rebuilding nothing is available, and restocking opens a drop again: such drops are left out.
    """
    shown: set[str] = set()
    for sample in evidence.samples:
        drop = evidence.drops.get(sample.drop_id)
        if drop is None or drop.restocked or sample.state == REBUILDING:
            continue
        if sample.state == SOLD_OUT:
            shown.add(sample.drop_id)
        elif sample.drop_id in shown:
            units = sample.available + sample.pending
            says = f"{units:,} units and state {sample.state} after sold_out"
            yield Case(says, (), sample.drop_id) if units else None
            continue
        yield None


@record_rule(Promise.IN_ORDER, "A standing voucher can be looked up", "unknown_request")
def looked_up_after_commit(
    _evidence: Evidence, _drop: DropEvidence, track: Track, record: Answered
) -> str | None:
    """The oracle looks up only numbers whose rows it had read in the ledger: they are committed."""
    if record.worker != ORACLE or record.action == GRAB:
        return None
    return "unknown, and a row of the ledger names it" if track.seen & Seen.IN_LEDGER else None
