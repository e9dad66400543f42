"""Rules about events: one for every voucher, to its partner only, numbered without gaps."""

from collections import Counter, defaultdict
from typing import Any, Final

import msgspec

from couponsvc.values.event import EventType, event_id
from tests.faults.harness.checker.evidence import Evidence
from tests.faults.harness.checker.rulebook import Broken, Cases, rule

ISSUED: Final = str(EventType.VOUCHER_ISSUED)


@rule("events_match")
def events_match(evidence: Evidence) -> Cases:
    """Vouchers and their events correspond one to one, and receivers heard nothing else."""
    yield from _each_voucher_once(evidence)
    yield from _sequences(evidence)
    for left in evidence.final.untold:
        yield Broken(f"still in the outbox long after healing: {left}")
    yield from _heard(evidence)


def _each_voucher_once(evidence: Evidence) -> Cases:
    """An event tells of its partner's vouchers, and each voucher of one event only."""
    told: Counter[tuple[str, int]] = Counter()
    for event in evidence.final.events:
        if event.kind != ISSUED:
            continue
        told.update([(event.drop_id, seq) for seq in event.seqs])
        says = (
            f"{event_id(event.event_no)} counts {event.voucher_count} vouchers and tells of {len(event.seqs)}"
        )
        yield None if event.voucher_count == len(event.seqs) else Broken(says)
    for untold in evidence.final.untold:
        if untold.kind == ISSUED and untold.first_seq is not None and untold.last_seq is not None:
            told.update([(untold.drop_id, seq) for seq in range(untold.first_seq, untold.last_seq + 1)])
    for row in evidence.final.vouchers:
        count = told.pop((row.drop_id, row.seq), 0)
        yield None if count == 1 else Broken(f"number {row.seq} of {row.drop_id} has {count} events")
    for (drop_id, seq), count in told.items():
        yield Broken(f"{count} events tell of number {seq} of {drop_id}, which nobody holds")


def _sequences(evidence: Evidence) -> Cases:
    """The events of a drop are numbered 1, 2, 3 … for each partner, in the order of their numbers."""
    sequences: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in sorted(evidence.final.events, key=lambda event: event.event_no):
        sequences[event.drop_id, event.partner_id].append(event.sequence)
    for (drop_id, partner_id), found in sequences.items():
        right = found == list(range(1, len(found) + 1))
        yield None if right else Broken(f"sequences of {drop_id} for {partner_id}: {found[:20]}")


def _heard(evidence: Evidence) -> Cases:
    """What a receiver kept is an event of its partner, with the receipts of its vouchers."""
    events = {event_id(event.event_no): event for event in evidence.final.events}
    receipts = {(row.drop_id, row.seq): row.receipt for row in evidence.final.vouchers}
    bodies: dict[str, bytes] = {}
    for partner_id, name, body in evidence.final.heard:
        event = events.get(name)
        if bodies.setdefault(name, body) != body:
            yield Broken(f"{name} was delivered with different bytes")
        elif event is None:
            if _drop_id(body) in evidence.drops:
                yield Broken(f"{partner_id} heard of {name}, which is no event of this drop")
        elif event.partner_id != partner_id:
            yield Broken(f"{partner_id} heard of {name}, which is {event.partner_id}'s")
        elif event.kind == ISSUED:
            wanted = [msgspec.json.decode(receipts[event.drop_id, seq]) for seq in event.seqs]
            yield None if _vouchers(body) == wanted else Broken(f"{name} was delivered with other vouchers")


def _vouchers(body: bytes) -> list[dict[str, Any]]:
    vouchers: list[dict[str, Any]] = msgspec.json.decode(body)["data"]["vouchers"]
    return vouchers


def _drop_id(body: bytes) -> str:
    return str(msgspec.json.decode(body)["data"].get("drop_id", ""))
