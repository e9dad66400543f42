"""Rules about stock over time: never one too few."""

from bisect import bisect_right
from collections import defaultdict

from tests.faults.harness.checker.evidence import (
    CLOCK_TOLERANCE_MS,
    NEVER_NS,
    Evidence,
    key_of,
)
from tests.faults.harness.checker.holding import Holding
from tests.faults.harness.checker.quantities import Quantities
from tests.faults.harness.checker.rulebook import Broken, Cases, rule
from tests.faults.harness.history import GRAB, Call

SERVER_ERROR = 500


@rule("sold_out_true")
def sold_out_true(evidence: Evidence) -> Cases:
    """`sold_out` is said only where, on some reading of the history, every unit could have been held.

    Left out: a drop that allows several vouchers per person, while a fault is near. There a grant
    that meets the person's own earlier voucher takes a unit out of Redis until the next look.
    """
    for drop_id, calls in _refused(evidence).items():
        drop, holding = evidence.drops[drop_id], Holding(evidence, drop_id)
        quantities = Quantities(evidence, drop)
        for call in calls:
            several = drop.limit > 1 and evidence.troubled(call.began_ns, call.ended_ns)
            if call.began_ns < evidence.quiet_from_ns and not several:
                yield _too_few(call, holding, quantities)


@rule("sold_out_final_true")
def sold_out_final_true(evidence: Evidence) -> Cases:
    """`sold_out` for good is said only once Postgres has issued the whole quantity."""
    for drop_id, calls in _refused(evidence).items():
        issued = sorted(row.issued_ms for row in evidence.rows_of[drop_id])
        quantities = Quantities(evidence, evidence.drops[drop_id])
        for call in calls:
            if call.retryable is False:
                count = bisect_right(issued, evidence.wall_ms(call.ended_ns) + CLOCK_TOLERANCE_MS)
                quantity = quantities.lowest(call.began_ns, call.ended_ns)
                says = f"sold out for good with {count} of {quantity} issued"
                yield Broken(says, [call]) if count < quantity else None


@rule("nothing_stranded")
def nothing_stranded(evidence: Evidence) -> Cases:
    """From 10 s after healing on, whoever asks gets a unit as long as one is left."""
    if evidence.quiet_from_ns == NEVER_NS:
        return
    for drop_id, calls in _asked_when_quiet(evidence).items():
        drop, holding = evidence.drops[drop_id], Holding(evidence, drop_id)
        quantities = Quantities(evidence, drop)
        issued = sorted(row.issued_ms for row in evidence.rows_of[drop_id])
        for call in calls:
            if call.code == "sold_out":
                yield _too_few(call, holding, quantities)
            elif call.status >= SERVER_ERROR and call.code != "overloaded":
                count = bisect_right(issued, evidence.wall_ms(call.ended_ns) + CLOCK_TOLERANCE_MS)
                left = quantities.lowest(call.began_ns, call.ended_ns) - count
                says = f"{call.code} long after healing, with {left} units left"
                yield Broken(says, [call]) if left > 0 else None
        yield _left_over(evidence, calls, drop.quantity - len(issued))


def _left_over(evidence: Evidence, calls: list[Call], left: int) -> Broken | None:
    """Who was told that nothing is left was told the truth in the end: only a number used otherwise
    gives its unit back, and only such units may be left."""
    given_back = sum(
        call.code == "request_mismatch" and call.ended_ns >= evidence.history.healed_ns
        for call in evidence.calls
    )
    sold_out = [call for call in calls if call.code == "sold_out"]
    if not sold_out or left <= given_back:
        return None
    return Broken(f"{left} units are left, and persons were told sold out long after healing", sold_out[-3:])


def _too_few(call: Call, holding: Holding, quantities: Quantities) -> Broken | None:
    most = holding.most(call.began_ns, call.ended_ns, key_of(call))
    quantity = quantities.lowest(call.began_ns, call.ended_ns)
    says = f"told sold out when {most} of {quantity} units at most could have been held"
    return Broken(says, [call]) if most < quantity else None


def _refused(evidence: Evidence) -> dict[str, list[Call]]:
    """Grabs that were told sold out, by drop."""
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in evidence.calls:
        if call.code == "sold_out" and call.action == GRAB:
            calls[call.drop_id].append(call)
    return calls


def _asked_when_quiet(evidence: Evidence) -> dict[str, list[Call]]:
    """Grabs that began when nothing of a fault may be seen any more, by drop."""
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in evidence.calls:
        if call.action == GRAB and call.began_ns >= evidence.quiet_from_ns:
            calls[call.drop_id].append(call)
    return calls
