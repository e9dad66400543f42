"""The table of drops in a verdict."""

from datetime import datetime

from loadtests.oracle.evidence import DropEvidence, Evidence
from loadtests.oracle.tracks import NEVER_MS
from loadtests.oracle.verdict import DropRow
from loadtests.records import OPERATOR


def drop_rows(evidence: Evidence) -> list[DropRow]:
    """One row per drop, in the order of the run's facts."""
    return [_row(evidence, drop) for drop in evidence.drops.values()]


def _row(evidence: Evidence, drop: DropEvidence) -> DropRow:
    began_ms = evidence.facts.started_ms
    granted = [
        moment.at_ms for (drop_id, _), moment in evidence.book.granted.items() if drop_id == drop.drop_id
    ]
    first_ms = min(granted, default=NEVER_MS)
    found = drop.figures
    return DropRow(
        drop_id=drop.drop_id,
        state=found.state if found else "unknown",
        quantity=found.quantity if found else drop.definition.quantity,
        available=found.available if found else 0,
        pending=found.pending if found else 0,
        issued=found.issued if found else 0,
        ledger_count=drop.rows_count,
        persons_refused=len(drop.refused_persons),
        first_grant_ms=None if first_ms == NEVER_MS else first_ms - began_ms,
        sold_out_ms=_sold_out_ms(evidence, drop),
    )


def _sold_out_ms(evidence: Evidence, drop: DropEvidence) -> float | None:
    """The deployment's `sold_out_at` on the run's clock, since the run began."""
    if drop.figures is None or drop.figures.sold_out_at is None:
        return None
    try:
        at_ms = datetime.fromisoformat(drop.figures.sold_out_at).timestamp() * 1000
    except ValueError:
        return None
    return at_ms - evidence.clocks.of(OPERATOR).offset_ms - evidence.facts.started_ms
