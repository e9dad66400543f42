"""Commits of several partners, put in the ledger by SQL, and the events that come of them."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from couponsvc.outbox.partitions import tend_partitions
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sequencing import SequenceCounts, Sequencer
from couponsvc.values.drop import Drop
from couponsvc.values.event import Event

Pool = asyncpg.Pool
NOW = datetime(2026, 10, 1, 2, 0, tzinfo=UTC)
MOMENT = datetime(2026, 10, 1, 1, 59, 59, 123_000, tzinfo=UTC)

_COMMIT = """
WITH raised AS (
  UPDATE drops SET issued = issued + cardinality($2::int[]) WHERE drop_no = $1
  RETURNING issued - cardinality($2::int[]) AS before
), rows AS (
  INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no, code)
  SELECT $1, before + place, partner_no, 1, $3, coalesce($4, 'of-' || partner_no) || '-' || before + place,
    $1 || '-' || before + place, 'C' || before + place
  FROM raised, unnest($2::int[]) WITH ORDINALITY AS o (partner_no, place)
)
INSERT INTO outbox (type, drop_no, first_seq, last_seq, occurred_at)
SELECT 'voucher.issued', $1, before + 1, before + cardinality($2::int[]), $3 FROM raised
"""
_SUBSCRIBE = """
INSERT INTO subscriptions (partner_no, url, types, drop_nos, sealed_secret)
VALUES ($1, 'https://receiver.example/hook', $2, $3, '') RETURNING subscription_no
"""


async def prepare(pool: "Pool[asyncpg.Record]", now: datetime = NOW) -> None:
    """Make the partitions, as a relay does before anything else."""
    await tend_partitions(pool, now, events_kept_days=0, attempts_kept_days=30)


async def admit(pool: "Pool[asyncpg.Record]", drop: Drop, *partner_ids: str) -> list[int]:
    """Let more partners see a drop; their numbers."""
    numbers = []
    for partner_id in partner_ids:
        partner_no = await pool.fetchval(
            "INSERT INTO partners (partner_id, name) VALUES ($1, $1)"
            " ON CONFLICT (partner_id) DO UPDATE SET name = excluded.name RETURNING partner_no",
            partner_id,
        )
        await pool.execute(
            "INSERT INTO drop_partners VALUES ($1, $2) ON CONFLICT DO NOTHING", drop.drop_no, partner_no
        )
        numbers.append(partner_no)
    return numbers


async def commit(
    pool: Any, drop: Drop, owners: Sequence[int], moment: datetime = MOMENT, token: str | None = None
) -> None:
    """Commit one batch: a voucher for each of these partners, in this order, and their outbox row."""
    await pool.execute(_COMMIT, drop.drop_no, list(owners), moment, token)


async def commit_apart(pool: "Pool[asyncpg.Record]", drop: Drop, *batches: Sequence[int]) -> None:
    """Commit batches of which each is numbered before the next, so that each makes an event of its own."""
    for owners in batches:
        await commit(pool, drop, owners)
        await number_all(pool)


async def tell(pool: Any, drop: Drop, kind: str, data: dict[str, Any] | None = None) -> None:
    """Write what an operator's change writes."""
    await pool.execute(
        "INSERT INTO outbox (type, drop_no, data, occurred_at) VALUES ($1, $2, $3::jsonb, $4)",
        kind,
        drop.drop_no,
        json.dumps({"drop_id": drop.drop_id} | (data or {})),
        MOMENT,
    )


async def subscribe(
    pool: "Pool[asyncpg.Record]", partner_no: int, *types: str, drop_nos: Sequence[int] | None = None
) -> int:
    """A live subscription; its number."""
    number: int = await pool.fetchval(_SUBSCRIBE, partner_no, list(types), drop_nos)
    return number


async def number_all(pool: "Pool[asyncpg.Record]", now: datetime = NOW) -> SequenceCounts:
    """Turn after turn until there is nothing left, by a sequencer of its own."""
    sequencer = Sequencer(pool)
    total = Counter[str]()
    while any(counts := await sequencer.run_once(now)):
        total.update(counts._asdict())
    return SequenceCounts(**total)


async def feed(pool: "Pool[asyncpg.Record]", partner_no: int) -> list[Event]:
    """Everything that a partner can read, page by page."""
    reader, events = EventReader(pool), list[Event]()
    while page := await reader.page(partner_no, events[-1].event_no if events else 0, 100):
        events += page
    return events


def documents(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [json.loads(event.body) for event in events]


def told(events: Sequence[Event]) -> list[str]:
    """What happened, in short: `drop.opened`, or `1..3` for vouchers."""
    short = []
    for event, document in zip(events, documents(events), strict=True):
        seqs = [voucher["seq"] for voucher in document["data"].get("vouchers", ())]
        short.append(f"{seqs[0]}..{seqs[-1]}" if seqs else event.kind.value)
    return short


def hours(count: float) -> timedelta:
    return timedelta(hours=count)
