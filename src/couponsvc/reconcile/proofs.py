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
    """I7: what was told of a drop and the rows of its outbox tile the numbers from the proven one to issued.

    A relay moves rows from one to the other in one transaction, so one snapshot sees each in one place.

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
            f"outbox and events tell of {row['told_count']} vouchers after number {proven_seq} where"
            f" {expected} were issued, with {row['break_count']} gaps or overlaps"
        )
        return Proof(proven_seq, [Finding(Kind.OUTBOX, amount, detail)])
    return Proof(row["issued"], [])


async def prove_events(pool: "Pool[asyncpg.Record]", drop_no: int) -> list[Finding]:
    """I7, the other half: every partner's events tell of all its vouchers that count as told, without gaps.

    Counts every voucher and every event of the drop. Where old events were dropped, only what is
    kept can be held against itself.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    rows = await pool.fetch(QUERIES["prove_events"], drop_no)
    return [finding for row in rows for finding in _events_findings(row)]


def _events_findings(row: asyncpg.Record) -> list[Finding]:
    findings: list[Finding] = []
    owned, told, dropped = row["owned_count"], row["told_count"], row["events_dropped"]
    if told > owned or (told < owned and not dropped):
        detail = f"partner {row['partner_no']} was told of {told} vouchers and has {owned}"
        findings.append(Finding(Kind.OUTBOX, abs(told - owned), detail))
    first, last, given = row["first_sequence"], row["last_sequence"], row["given_sequence"]
    span = last - first + 1 if row["event_count"] else 0
    whole = first == 1 and last == given if row["event_count"] else given == 0
    if {row["event_count"], row["sequence_count"]} != {span} or not (whole or dropped):
        detail = (
            f"partner {row['partner_no']} has {row['event_count']} events, numbered {first} to {last},"
            f" where {given} were given"
        )
        findings.append(Finding(Kind.OUTBOX, abs(given - row["event_count"]) or 1, detail))
    return findings
