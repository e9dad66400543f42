"""Rules about windows and pauses, by the one clock that opens and closes a drop."""

from typing import Final

from couponsvc.values.drop import DropStatus
from tests.faults.harness.checker.evidence import CLOCK_TOLERANCE_MS, NEVER_NS, Evidence, Span
from tests.faults.harness.checker.rulebook import Broken, Cases, rule
from tests.faults.harness.final import FinalDrop
from tests.faults.harness.history import GRAB, Call

TOLERANCE_NS: Final = CLOCK_TOLERANCE_MS * 1_000_000


@rule("opened_in_window")
def opened_in_window(evidence: Evidence) -> Cases:
    """Grants are made from the opening to the end and not in a pause, and refusals say so truly.

    Redis' clock is the machine's. The window is the drop's last one; harness and operators of these
    tests never move it.
    """
    pauses = {drop_id: _paused(evidence, drop_id) for drop_id in evidence.drops}
    certain = {drop_id: _certainly_paused(evidence, drop_id) for drop_id in evidence.drops}
    for call in evidence.calls:
        drop = evidence.drops[call.drop_id]
        if call.code in ("not_started", "ended", "paused"):
            yield _wrong_refusal(evidence, drop, call, pauses[call.drop_id])
    for key, calls in evidence.by_key.items():
        row, first = evidence.row_of(key), next((call for call in calls if call.action == GRAB), None)
        if row is None:
            continue
        drop = evidence.drops[key.drop_id]
        early_ms = drop.opens_ms - row.issued_ms
        late_ms = evidence.wall_ms(first.began_ns) - drop.closes_ms if first else 0
        issued_ns = evidence.monotonic_ns(row.issued_ms)
        if early_ms > CLOCK_TOLERANCE_MS:
            yield Broken(f"issued {early_ms} ms before the opening", calls)
        elif late_ms > CLOCK_TOLERANCE_MS:
            yield Broken(f"first asked for {late_ms:.0f} ms after the end, and issued", calls)
        elif first and any(
            began < first.began_ns and issued_ns + TOLERANCE_NS < ended
            for began, ended in certain[key.drop_id]
        ):
            yield Broken("first asked for in a pause, and issued before its end", calls)
        else:
            yield None


def _wrong_refusal(evidence: Evidence, drop: FinalDrop, call: Call, pauses: list[Span]) -> Broken | None:
    began_ms, ended_ms = evidence.wall_ms(call.began_ns), evidence.wall_ms(call.ended_ns)
    if call.code == "not_started" and began_ms > drop.opens_ms + CLOCK_TOLERANCE_MS:
        return Broken("told not started after the opening", [call])
    closed = drop.status == DropStatus.CLOSED
    if call.code == "ended" and not closed and ended_ms < drop.closes_ms - CLOCK_TOLERANCE_MS:
        return Broken("told ended before the end", [call])
    if call.code == "paused" and not any(b <= call.ended_ns and call.began_ns <= e for b, e in pauses):
        return Broken("told paused, and nobody had paused the drop", [call])
    return None


def _paused(evidence: Evidence, drop_id: str) -> list[Span]:
    """When the drop may have been paused: from a request to pause to a resumption that is settled."""
    spans: list[Span] = []
    open_from: int | None = None
    for operation in evidence.operations[drop_id]:
        if operation.what == "pause" and operation.ok is not False and open_from is None:
            open_from = operation.began_ns
        elif operation.what == "resume" and operation.ok and open_from is not None:
            spans.append((open_from, evidence.settled_ns(operation.began_ns, operation.ended_ns)))
            open_from = None
    if open_from is not None:
        spans.append((open_from, NEVER_NS))
    return spans


def _certainly_paused(evidence: Evidence, drop_id: str) -> list[Span]:
    """When it certainly was: from a pause that is settled to the next request to resume."""
    spans: list[Span] = []
    closed_from: int | None = None
    for operation in evidence.operations[drop_id]:
        if operation.what == "pause" and operation.ok and closed_from is None:
            closed_from = evidence.settled_ns(operation.began_ns, operation.ended_ns)
        elif operation.what == "resume" and operation.ok is not False and closed_from is not None:
            spans.append((closed_from, operation.began_ns))
            closed_from = None
    if closed_from is not None:
        spans.append((closed_from, NEVER_NS))
    return spans
