"""Rules about figures: never one too many, numbers without gaps, nothing left over, no drift."""

from collections import defaultdict
from collections.abc import Sequence

from tests.faults.harness.checker.evidence import CLOCK_TOLERANCE_MS, CONFIRMED, NEVER_NS, Evidence, Shown
from tests.faults.harness.checker.quantities import Quantities
from tests.faults.harness.checker.rulebook import Broken, Cases, rule
from tests.faults.harness.final import FinalDrop


@rule("never_too_many")
def never_too_many(evidence: Evidence) -> Cases:
    """Vouchers are never more than units: in the end, at the time of each, and as callers were told."""
    told: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for call, voucher, _ in evidence.shown:
        if voucher is not None and call.status in CONFIRMED:
            told[call.drop_id].add((call.partner_id, voucher.out_request_no))
    for drop in evidence.drops.values():
        rows, quantities = evidence.rows_of[drop.drop_id], Quantities(evidence, drop)
        highest = quantities.highest(-NEVER_NS, NEVER_NS)
        yield _more(f"{drop.drop_id}: vouchers in the ledger", len(rows), drop.quantity)
        yield _more(f"{drop.drop_id}: counted as issued", drop.issued, drop.quantity)
        yield _more(f"{drop.drop_id}: vouchers told", len(told[drop.drop_id]), highest)
        for count, issued_ms in enumerate(sorted(row.issued_ms for row in rows), start=1):
            moment_ns = evidence.monotonic_ns(issued_ms)
            tolerance_ns = CLOCK_TOLERANCE_MS * 1_000_000
            quantity = quantities.highest(moment_ns - tolerance_ns, moment_ns + tolerance_ns)
            yield _more(f"{drop.drop_id}: issued by {issued_ms}", count, quantity)


@rule("person_limit")
def person_limit(evidence: Evidence) -> Cases:
    """A person holds what the drop allows at most, and who is refused for good is shown what that is."""
    limits = {drop_id: drop.limit for drop_id, drop in evidence.drops.items()}
    ordinals: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row in evidence.final.vouchers:
        ordinals[row.drop_id, row.partner_id, row.person_token].append(row.ordinal)
    for (drop_id, partner_id, person), held in ordinals.items():
        right = len(held) <= limits[drop_id] and max(held) <= limits[drop_id] and len(set(held)) == len(held)
        says = (
            f"{person} of {partner_id} holds ordinals {sorted(held)} of {drop_id}, {limits[drop_id]} allowed"
        )
        yield None if right else Broken(says)
    told: dict[tuple[str, str, str], dict[str, Shown]] = defaultdict(dict)
    for shown in evidence.shown:
        if shown.voucher is not None:
            whose = (shown.call.drop_id, shown.call.partner_id, shown.voucher.person_token)
            told[whose].setdefault(shown.voucher.out_request_no, shown)
    for (drop_id, partner_id, person), answers in told.items():
        says = f"{person} of {partner_id} was told of {len(answers)} vouchers of {drop_id}"
        too_many = len(answers) > limits[drop_id]
        yield Broken(says, [shown.call for shown in answers.values()]) if too_many else None
    for call in evidence.calls:
        if call.code == "person_limit" and call.retryable is False:
            yield None if call.body else Broken("refused for good, and no voucher is shown", [call])


@rule("numbers_without_gaps")
def numbers_without_gaps(evidence: Evidence) -> Cases:
    """The numbers of a drop are 1, 2, 3 … issued."""
    for drop in evidence.drops.values():
        seqs = [row.seq for row in evidence.rows_of[drop.drop_id]]
        yield _gap(drop, seqs)


@rule("nothing_pending")
def nothing_pending(evidence: Evidence) -> Cases:
    """At rest no grant is left anywhere in Redis, and every drop is open under its newest epoch."""
    stream = evidence.final.stream
    yield Broken(f"left in Redis: {stream}") if any(stream) else None
    for drop in evidence.drops.values():
        if drop.state is None or drop.published != drop.epoch:
            says = f"{drop.drop_id}: epoch {drop.epoch} in Postgres, {drop.published} is published"
            yield Broken(f"{says}, state {drop.state}")
        else:
            pending = drop.state.get("pending", -1)
            yield Broken(f"{drop.drop_id}: {pending} units are pending") if pending else None


@rule("zero_drift")
def zero_drift(evidence: Evidence) -> Cases:
    """`couponsvc check` finds that Redis and Postgres agree."""
    final = evidence.final
    yield Broken(f"exit code {final.check_exit}: {final.check_output}") if final.check_exit else None


def _more(what: str, count: int, quantity: int) -> Broken | None:
    return Broken(f"{what}: {count} of {quantity}") if count > quantity else None


def _gap(drop: FinalDrop, seqs: Sequence[int]) -> Broken | None:
    if sorted(seqs) == list(range(1, drop.issued + 1)):
        return None
    missing = sorted(set(range(1, drop.issued + 1)) - set(seqs))[:5]
    return Broken(f"{drop.drop_id}: {len(seqs)} vouchers, {drop.issued} issued, missing numbers {missing}")
