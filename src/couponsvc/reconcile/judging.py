"""Compares what Redis and Postgres say of a drop, and names each way in which they disagree.

Pure: no input but two or three snapshots, no output but findings. A snapshot of Redis is
atomic, so what it says of itself is exact at any moment; what it says beside Postgres is
exact only at rest, and lies within bounds in motion.
"""

import enum
from typing import NamedTuple

from couponsvc.reconcile.snapshot import Counters, GateSide, LedgerSide
from couponsvc.values.drop import Drop


class Kind(enum.StrEnum):
    """In which way a drop is not as it must be."""

    NOT_LOADED = "not_loaded"
    """The epoch of Postgres is not published in Redis, or its state is missing."""
    CONSERVATION = "conservation"
    """I1 within Redis: available + pending + issued is not the quantity."""
    ISSUED = "issued"
    """I1 across: Postgres has issued more or fewer than Redis can account for."""
    SOLD_OUT = "sold_out"
    """I5: nothing is available or pending, yet Postgres has not issued the whole quantity."""
    DEFINITION = "definition"
    """Redis holds an older definition, or other rules under the version of Postgres."""
    AHEAD = "ahead"
    """Redis holds a newer definition than Postgres: units are being taken from stock, or Postgres
    lost a commit. Only time tells which."""
    HOLDERS = "holders"
    """I8: the holders are not as many as pending and issued, or not those of Postgres."""
    ROWS = "rows"
    """I3: Postgres has another number of vouchers than it says it issued."""
    NUMBERS = "numbers"
    """I3: the numbers of the vouchers have gaps."""
    OUTBOX = "outbox"
    """I7: the events do not tell of every voucher exactly once."""
    STUCK = "stuck"
    """Grants stay pending: none of them is committed, or their stream entries are gone."""

    @property
    def mended_by_rebuild(self) -> bool:
        """Whether loading Redis from Postgres again is the cure."""
        return self not in {Kind.NUMBERS, Kind.OUTBOX}


class Finding(NamedTuple):
    """One disagreement."""

    kind: Kind
    amount: int
    """How far off, in vouchers; 1 where nothing can be counted."""
    detail: str


def is_loaded(gate: GateSide, drop: Drop) -> bool:
    """Whether the drop can be open in Redis under the epoch of Postgres."""
    return gate.published == drop.epoch and gate.state is not None


def judge_at_rest(gate: GateSide, ledger: LedgerSide) -> list[Finding]:
    """Exact comparison: nothing is pending, and neither side moved between the two reads."""
    state = gate.state
    if state is None or not is_loaded(gate, ledger.drop):
        return [not_loaded(gate, ledger.drop)]
    findings = _judge_redis_alone(gate, state) + _judge_definition(state, ledger.drop)
    if state.issued != ledger.issued:
        detail = f"Postgres has issued {ledger.issued}, Redis noted {state.issued}"
        findings.append(Finding(Kind.ISSUED, abs(ledger.issued - state.issued), detail))
    if state.available == 0 and ledger.issued != state.quantity:
        detail = f"nothing is available and {state.quantity - ledger.issued} are not issued"
        findings.append(Finding(Kind.SOLD_OUT, abs(state.quantity - ledger.issued), detail))
    return findings


def judge_in_motion(before: GateSide, ledger: LedgerSide, after: GateSide) -> list[Finding]:
    """Bounds while grants flow: Redis was read, then Postgres, then Redis again.

    What Redis noted before was committed before; what Postgres has issued was granted before
    Redis was read again.
    """
    if before.state is None or after.state is None or not is_loaded(after, ledger.drop):
        return [not_loaded(after, ledger.drop)]
    findings = _judge_redis_alone(after, after.state)
    if before.state.version == after.state.version:
        findings += _judge_definition(before.state, ledger.drop)
    low, high = before.state.issued, after.state.issued + after.state.pending
    if not low <= ledger.issued <= high:
        amount = low - ledger.issued if ledger.issued < low else ledger.issued - high
        detail = f"Postgres has issued {ledger.issued}, Redis accounts for {low} to {high}"
        findings.append(Finding(Kind.ISSUED, amount, detail))
    return findings


def not_loaded(gate: GateSide, drop: Drop) -> Finding:
    """The finding for a drop that cannot be open."""
    if gate.published == drop.epoch:
        detail = f"the state of epoch {drop.epoch} is missing"
    else:
        detail = f"epoch {drop.epoch} is not published, Redis has {gate.published or 'none'}"
    return Finding(Kind.NOT_LOADED, 1, detail)


def _judge_redis_alone(gate: GateSide, state: Counters) -> list[Finding]:
    findings = []
    sum_of_parts = state.available + state.pending + state.issued
    if sum_of_parts != state.quantity or min(state[:3]) < 0:
        detail = (
            f"{state.available} available + {state.pending} pending + {state.issued} issued"
            f" is not {state.quantity}"
        )
        amount = abs(state.quantity - sum_of_parts) or -min(state[:3])
        findings.append(Finding(Kind.CONSERVATION, amount, detail))
    if gate.stranded_count:
        detail = f"{gate.stranded_count} grants are pending and the stream is empty"
        findings.append(Finding(Kind.STUCK, gate.stranded_count, detail))
    if gate.holder_count != state.pending + state.issued:
        detail = f"{gate.holder_count} holders for {state.pending} pending + {state.issued} issued"
        amount = abs(gate.holder_count - state.pending - state.issued)
        findings.append(Finding(Kind.HOLDERS, amount, detail))
    return findings


def _judge_definition(state: Counters, drop: Drop) -> list[Finding]:
    if state.version > drop.version:
        detail = f"Redis holds version {state.version}, Postgres {drop.version}"
        return [Finding(Kind.AHEAD, 1, detail)]
    if state.version < drop.version:
        return []  # behind: to be applied, not drift
    rules = (drop.quantity, drop.per_person_limit, drop.opens_ms, drop.closes_ms, int(drop.status))
    if state[3:8] != rules:
        detail = f"version {drop.version} is {state[3:8]} in Redis and {rules} in Postgres"
        return [Finding(Kind.DEFINITION, max(abs(state.quantity - drop.quantity), 1), detail)]
    return []
