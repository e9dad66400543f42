"""Rules about figures: the units of a drop, wherever they are, add up to its quantity."""

from collections.abc import Iterator

from loadtests.oracle.evidence import REBUILDING, Evidence
from loadtests.oracle.rulebook import Case, sweep_rule
from loadtests.oracle.verdict import Promise


@sweep_rule(Promise.TOO_MANY, "A drop has no more rows in the ledger than its quantity")
def rows_within_the_quantity(evidence: Evidence) -> Iterator[Case | None]:
    """Vouchers are never more than units, at any moment; the quantity was read after the rows."""
    for drop in evidence.drops.values():
        if drop.figures is not None:
            more = drop.rows_count - drop.figures.quantity
            says = f"{drop.rows_count:,} vouchers of {drop.figures.quantity:,}"
            yield Case(says, (), drop.drop_id) if more > 0 else None


@sweep_rule(Promise.TOO_MANY, "At rest, quantity = available + pending + issued, and issued = rows")
def figures_conserve(evidence: Evidence) -> Iterator[Case | None]:
    """The figures of one answer always add up (API description); at rest nothing moves any more.

    Where others go on grabbing, more may be issued since the ledger was read. A closed drop that
    is not loaded has nothing available: its unissued units are nowhere.
    """
    alone = evidence.facts.exclusive
    for drop in evidence.drops.values():
        found = drop.figures
        if found is None:
            continue
        units = found.available + found.pending + found.issued
        unloaded = found.state == "closed" and found.available == found.pending == 0
        if units != found.quantity and not (unloaded and units < found.quantity):
            says = f"{found.available:,} + {found.pending:,} + {found.issued:,} is not {found.quantity:,}"
            yield Case(says, (), drop.drop_id)
        elif found.issued < drop.rows_count or (alone and found.issued > drop.rows_count):
            says = f"says {found.issued:,} issued, and the ledger has {drop.rows_count:,} rows"
            yield Case(says, (), drop.drop_id)
        else:
            yield None


@sweep_rule(
    Promise.TOO_MANY, "During the run, available + pending + issued was always a quantity of the drop"
)
def samples_conserve(evidence: Evidence) -> Iterator[Case | None]:
    """Each answer is consistent in itself (API description).

    Beside the quantity of the definition, every quantity that an operator set in the run is right,
    since the gate and the definition change one after the other.
    """
    for sample in evidence.samples:
        drop = evidence.drops.get(sample.drop_id)
        if drop is None or sample.state in {REBUILDING, "closed"}:
            continue
        units = sample.available + sample.pending + sample.issued
        says = f"{sample.available:,} + {sample.pending:,} + {sample.issued:,} is not the quantity"
        right = units in drop.quantities or units == sample.quantity
        yield None if right else Case(says, (), drop.drop_id)


@sweep_rule(Promise.TOO_FEW, "After the run no unit stays pending")
def nothing_stays_pending(evidence: Evidence) -> Iterator[Case | None]:
    """Nobody grabs any more, and the drainer commits or returns what it finds; the oracle waited."""
    for drop in evidence.drops.values():
        found = drop.figures
        if found is not None:
            stuck = found.pending or found.state == REBUILDING
            says = f"{found.pending:,} units pending and state {found.state} long after the run"
            yield Case(says, (), drop.drop_id) if stuck else None
