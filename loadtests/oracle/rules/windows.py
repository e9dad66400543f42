"""Rules about windows and operators: opening, closing, pausing, by the deployment's clock.

The deployment has one clock. What a worker's clock says is moved by its measured offset, and only
what lies outside the tolerance on the safe side is judged.
"""

from loadtests.oracle.evidence import DropEvidence, Evidence
from loadtests.oracle.rulebook import incomplete, record_rule, redefined
from loadtests.oracle.tracks import Seen, Track
from loadtests.oracle.verdict import Promise
from loadtests.records import OPERATOR, Answered


@record_rule(Promise.IN_ORDER, "Nobody is granted before the opening", 200, 201, excuses=(redefined,))
def not_granted_before_the_opening(
    evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered
) -> str | None:
    """The answer had arrived before the window opened, even if the clocks are as far off as they may."""
    if drop.definition.issued_before:
        return None
    latest_ms = evidence.clocks.deployed(record.answered_ms, record.worker)[1]
    early_ms = drop.definition.opens_ms - latest_ms
    return f"granted at least {early_ms:,.0f} ms before the opening" if early_ms > 0 else None


@record_rule(
    Promise.IN_ORDER, "Nobody is granted after the window has closed", 201, excuses=(redefined, incomplete)
)
def not_granted_after_the_end(
    evidence: Evidence, drop: DropEvidence, track: Track, record: Answered
) -> str | None:
    """The number was sent for the first time after the end; an earlier attempt may still be confirmed."""
    if track.seen & Seen.MANY_WORKERS or record.worker != track.worker:
        return None
    earliest_ms = evidence.clocks.deployed(track.first_sent_ms, track.worker)[0]
    late_ms = earliest_ms - drop.definition.closes_ms
    return f"granted at least {late_ms:,.0f} ms after the end" if late_ms > 0 else None


@record_rule(
    Promise.IN_ORDER, "Nobody is told not started after the opening", "not_started", excuses=(redefined,)
)
def open_when_it_should_be(
    evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered
) -> str | None:
    """The request was sent after the opening, even if the clocks are as far off as they may."""
    late_ms = evidence.clocks.deployed(record.sent_ms, record.worker)[0] - drop.definition.opens_ms
    return f"told not started {late_ms:,.0f} ms after the opening, or more" if late_ms > 0 else None


@record_rule(Promise.IN_ORDER, "Nobody is told ended before the end", "ended", excuses=(redefined,))
def not_ended_early(evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered) -> str | None:
    """The answer had arrived before the window closed, and before an operator began to close the drop."""
    early_ms = drop.definition.closes_ms - evidence.clocks.deployed(record.answered_ms, record.worker)[1]
    if early_ms <= 0:
        return None
    for operation in drop.operations:
        if operation.what == "close" and not evidence.clocks.certainly_before(
            record.answered_ms, record.worker, operation.sent_ms, OPERATOR
        ):
            return None
    return f"told ended at least {early_ms:,.0f} ms before the end, and nobody closed the drop"


@record_rule(Promise.IN_ORDER, "Nobody is told paused unless an operator paused the drop", "paused")
def paused_by_somebody(evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered) -> str | None:
    """A pause can be seen from when the operator asked for it until resuming was answered.

    A drop may have been paused when the run began, so where the first operation is a resumption
    everything before its answer counts as paused.
    """
    paused = bool(drop.operations) and drop.operations[0].what == "resume"
    for operation in drop.operations:
        if operation.what == "pause":
            if not evidence.clocks.certainly_before(
                record.answered_ms, record.worker, operation.sent_ms, OPERATOR
            ):
                paused = True
        elif operation.what == "resume" and evidence.clocks.certainly_before(
            operation.answered_ms, OPERATOR, record.sent_ms, record.worker
        ):
            paused = False
    return None if paused else "told paused, and no operator had paused the drop"


@record_rule(Promise.IN_ORDER, "Nobody is granted anew while a drop is paused", 201, excuses=(incomplete,))
def not_granted_while_paused(
    evidence: Evidence, drop: DropEvidence, track: Track, record: Answered
) -> str | None:
    """The number was first sent after the pause was answered, and had its voucher before resuming.

    A grant from before the pause was sent before it.
    """
    if track.seen & Seen.MANY_WORKERS or record.worker != track.worker:
        return None
    clocks, pause_ms = evidence.clocks, None
    for operation in drop.operations:
        if operation.what == "pause":
            pause_ms = operation.answered_ms if pause_ms is None else pause_ms
        elif operation.what == "resume" and pause_ms is not None:
            if clocks.certainly_before(pause_ms, OPERATOR, track.first_sent_ms, track.worker) and (
                clocks.certainly_before(record.answered_ms, record.worker, operation.sent_ms, OPERATOR)
            ):
                return "granted while the drop was paused"
            pause_ms = None
    still = pause_ms is not None and clocks.certainly_before(
        pause_ms, OPERATOR, track.first_sent_ms, track.worker
    )
    return "granted while the drop was paused" if still else None
