"""What Postgres must say of itself: numbers without gaps (I3), every voucher told once (I7).

Each proof is one statement, hence one snapshot, so it is exact at any moment. It begins after
a number that was proven before, so that looking often stays cheap, and one statement proves many
drops, so that looking at many does, too.
"""

from collections.abc import Mapping
from typing import NamedTuple

import asyncpg

from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.snapshot import QUERIES, Pool


class Proof(NamedTuple):
    """How far a proof reached, and what it found."""

    proven_seq: int
    """Every number up to here is proven; where something was found, it is where the proof began."""
    findings: list[Finding]


async def prove_numbers(pool: "Pool[asyncpg.Record]", proven_seqs: Mapping[int, int]) -> dict[int, Proof]:
    """I3: the vouchers after a drop's proven number are as many as issued, and the highest is the last.

    Numbers are unique and positive by the primary key, so that proves 1..issued without gaps.

    Args:
        pool: Of the ledger.
        proven_seqs: By `drop_no`: up to which number it was proven before; 0: not at all.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    rows = await pool.fetch(QUERIES["prove_numbers"], list(proven_seqs), list(proven_seqs.values()))
    return {row["drop_no"]: _numbers_proof(row, proven_seqs[row["drop_no"]]) for row in rows}


def _numbers_proof(row: asyncpg.Record, proven_seq: int) -> Proof:
    expected = row["issued"] - proven_seq
    if row["count_after"] != expected:
        detail = f"{row['count_after']} vouchers after number {proven_seq} where {expected} were issued"
        return Proof(proven_seq, [Finding(Kind.ROWS, abs(row["count_after"] - expected), detail)])
    if row["highest_seq"] != row["issued"]:
        detail = f"the highest number is {row['highest_seq']} of {row['issued']} issued"
        return Proof(proven_seq, [Finding(Kind.NUMBERS, abs(row["highest_seq"] - row["issued"]), detail)])
    return Proof(row["issued"], [])


async def prove_outbox(pool: "Pool[asyncpg.Record]", proven_seqs: Mapping[int, int]) -> dict[int, Proof]:
    """I7: the `voucher.issued` events after a drop's proven number tile the numbers up to issued.

    Args:
        pool: Of the ledger.
        proven_seqs: As in `prove_numbers`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    rows = await pool.fetch(QUERIES["prove_outbox"], list(proven_seqs), list(proven_seqs.values()))
    return {row["drop_no"]: _outbox_proof(row, proven_seqs[row["drop_no"]]) for row in rows}


def _outbox_proof(row: asyncpg.Record, proven_seq: int) -> Proof:
    expected = row["issued"] - proven_seq
    if row["break_count"] or row["told_count"] != expected:
        amount = abs(row["told_count"] - expected) or row["break_count"]
        detail = (
            f"events tell of {row['told_count']} vouchers after number {proven_seq} where {expected}"
            f" were issued, with {row['break_count']} gaps or overlaps"
        )
        return Proof(proven_seq, [Finding(Kind.OUTBOX, amount, detail)])
    return Proof(row["issued"], [])
