"""Rules about events: one for every voucher, to its partner only, numbered without gaps."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Final

import msgspec

from couponsvc.values.event import EventType, event_id
from tests.faults.harness.checker.evidence import Evidence
from tests.faults.harness.checker.rulebook import Broken, Cases, rule
from tests.faults.harness.final import FinalEvent

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
            right = _data(body)["vouchers"] == wanted
            yield None if right else Broken(f"{name} was delivered with other vouchers")


@rule("feed_complete")
def feed_complete(evidence: Evidence) -> Cases:
    """A reader of the feed got every event of its partner once, in order, with its vouchers."""
    wanted: dict[str, list[FinalEvent]] = defaultdict(list)
    for event in sorted(evidence.final.events, key=lambda event: event.event_no):
        wanted[event.partner_id].append(event)
    receipts = {(row.drop_id, row.seq): row.receipt for row in evidence.final.vouchers}
    for way in evidence.final.followed:
        found: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for partner_id, name, body in way:
            data = msgspec.json.decode(body)
            if data.get("drop_id") in evidence.drops:
                found[partner_id].append((name, data))
        for partner_id in wanted.keys() | found.keys():
            for place, (event, read) in enumerate(zip_longest(wanted[partner_id], found[partner_id])):
                yield _read_rightly(partner_id, place, event, read, receipts)


def _read_rightly(
    partner_id: str,
    place: int,
    event: FinalEvent | None,
    read: tuple[str, dict[str, Any]] | None,
    receipts: Mapping[tuple[str, int], bytes],
) -> Broken | None:
    name = "nothing" if event is None else event_id(event.event_no)
    if event is None or read is None or read[0] != name:
        got = "nothing" if read is None else read[0]
        return Broken(f"as event {place + 1} of its feed {partner_id} read {got} in place of {name}")
    if event.kind == ISSUED:
        told = [msgspec.json.decode(receipts[event.drop_id, seq]) for seq in event.seqs]
        if read[1]["vouchers"] != told:
            return Broken(f"{name} was read with other vouchers")
    return None


def _data(body: bytes) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.json.decode(body)["data"]
    return data


def _drop_id(body: bytes) -> str:
    return str(_data(body).get("drop_id", ""))
