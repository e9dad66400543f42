"""What Postgres must say of itself: numbers without gaps (I3), every voucher told once (I7).

Each proof is one statement, hence one snapshot, so it is exact at any moment. It begins after
a number that was proven before, so that looking often stays cheap.
"""

from typing import NamedTuple

import asyncpg

from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.snapshot import QUERIES, Pool


class Proof(NamedTuple):
    """How far a proof reached, and what it found."""

    proven_seq: int
    """Every number up to here is proven; where something was found, it is where the proof began."""
    findings: list[Finding]


async def prove_numbers(pool: "Pool[asyncpg.Record]", drop_no: int, proven_seq: int = 0) -> Proof:
    """I3: the vouchers after `proven_seq` are as many as issued, and the highest is the last.

    Numbers are unique and positive by the primary key, so that proves 1..issued without gaps.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    row = await pool.fetchrow(QUERIES["prove_numbers"], drop_no, proven_seq)
    assert row is not None, "drops are never deleted"  # noqa: S101 - narrows the type
    expected = row["issued"] - proven_seq
    if row["count_after"] != expected:
        detail = f"{row['count_after']} vouchers after number {proven_seq} where {expected} were issued"
        return Proof(proven_seq, [Finding(Kind.ROWS, abs(row["count_after"] - expected), detail)])
    if row["highest_seq"] != row["issued"]:
        detail = f"the highest number is {row['highest_seq']} of {row['issued']} issued"
        return Proof(proven_seq, [Finding(Kind.NUMBERS, abs(row["highest_seq"] - row["issued"]), detail)])
    return Proof(row["issued"], [])


async def prove_outbox(pool: "Pool[asyncpg.Record]", drop_no: int, proven_seq: int = 0) -> Proof:
    """I7: the `voucher.issued` events after `proven_seq` tile the numbers up to issued.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    row = await pool.fetchrow(QUERIES["prove_outbox"], drop_no, proven_seq)
    assert row is not None, "drops are never deleted"  # noqa: S101 - narrows the type
    expected = row["issued"] - proven_seq
    if row["break_count"] or row["told_count"] != expected:
        amount = abs(row["told_count"] - expected) or row["break_count"]
        detail = (
            f"events tell of {row['told_count']} vouchers after number {proven_seq} where {expected}"
            f" were issued, with {row['break_count']} gaps or overlaps"
        )
        return Proof(proven_seq, [Finding(Kind.OUTBOX, amount, detail)])
    return Proof(row["issued"], [])
