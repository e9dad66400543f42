"""Between the ledger and the rules: signs of trouble, who took units when, who was sent away."""

from collections import defaultdict

from loadtests.oracle.evidence import REBUILDING, Evidence, Taker
from loadtests.oracle.tracks import NEVER_MS, Seen


def prepare(evidence: Evidence) -> None:
    """Fill in what the rules look up. Once, after the ledger was read and its rows were marked."""
    _note_trouble(evidence)
    _note_takers(evidence)
    _note_persons(evidence)
    for drop in evidence.drops.values():
        drop.find_when_all_were_taken(evidence.clocks, evidence.workers)


def _note_trouble(evidence: Evidence) -> None:
    for sample in evidence.samples:
        if sample.state == REBUILDING and sample.drop_id in evidence.drops:
            evidence.drops[sample.drop_id].disturbed = "it was rebuilding"
    for drop_id, code in evidence.book.disturbed.items():
        if drop_id in evidence.drops:
            evidence.drops[drop_id].disturbed = f"somebody was answered {code}"


def _note_takers(evidence: Evidence) -> None:
    """A number asked of two workers has no one clock: it counts as sent at the beginning."""
    for number, track in evidence.book:
        drop = evidence.drops.get(track.drop_id)
        if drop is None:
            continue
        otherwise = evidence.book.tracks[number].other is not None
        drop.otherwise_count += otherwise
        if track.seen & Seen.IN_LEDGER or otherwise:
            sent_ms = -NEVER_MS if track.seen & Seen.MANY_WORKERS else track.first_sent_ms
            drop.takers.append(Taker(sent_ms, track.worker))
    for drop in evidence.drops.values():
        drop.takers.extend(Taker(-NEVER_MS, "") for _ in drop.row_numbers_foreign)


def _note_persons(evidence: Evidence) -> None:
    served: dict[str, set[str]] = defaultdict(set)
    for _, track in evidence.book:
        drop = evidence.drops.get(track.drop_id)
        if drop is None:
            continue
        if track.seen & (Seen.IN_LEDGER | Seen.VOUCHER):
            served[track.drop_id].add(track.person_token)
        elif track.seen & Seen.SOLD_OUT:
            drop.refused_persons.add(track.person_token)
    for drop in evidence.drops.values():
        drop.refused_persons.difference_update(served[drop.drop_id])
