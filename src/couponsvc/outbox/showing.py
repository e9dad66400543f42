"""What operators see of events and deliveries: which, whose, when and how it went; never what is in them.

Person tokens and codes stay between the service and the partner that owns them, so these readings
have only figures and names, and a receiver's URL, which may hold a secret, is shown up to its host.
"""

from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from couponsvc.outbox.retries import FAILING_FROM_COUNT
from couponsvc.support.sql import Queries
from couponsvc.values.event import event_id, subscription_id

Pool = asyncpg.Pool
Shown = dict[str, Any]

QUEUE_STATES: Final = ("waiting", "delivering", "parked")
OUTCOMES: Final = ("delivered", "failed", "gone")

_queries = Queries("couponsvc.outbox", "showing")


async def number_partner(pool: "Pool[asyncpg.Record]", partner_id: str) -> int | None:
    """`partner_no`, or None where nobody has that name."""
    number: int | None = await pool.fetchval(_queries["number_partner"], partner_id)
    return number


async def before_newest(pool: "Pool[asyncpg.Record]", partner_no: int | None, count: int) -> int:
    """The event number after which the newest `count` events come; of one partner, or of all."""
    if partner_no is None:
        newest: int = await pool.fetchval(_queries["newest_event_no"])
        return max(newest - count, 0)
    before: int | None = await pool.fetchval(_queries["before_newest_of_partner"], partner_no, count)
    return before or 0


async def events_after(
    pool: "Pool[asyncpg.Record]", partner_no: int | None, after: int, limit: int
) -> list[Shown]:
    """The next events in order, each with its `event_no`."""
    if partner_no is None:
        rows = await pool.fetch(_queries["events_after"], after, limit)
    else:
        rows = await pool.fetch(_queries["events_of_partner_after"], after, limit, partner_no)
    return [
        {
            "event_no": row["event_no"],
            "occurred_at": row["occurred_at"],
            "event_id": event_id(row["event_no"]),
            "partner_id": row["partner_id"],
            "drop_id": row["drop_id"],
            "type": row["type"],
            "sequence": row["sequence"],
            "voucher_count": row["voucher_count"],
            "first_seq": row["first_seq"],
            "last_seq": row["last_seq"],
        }
        for row in rows
    ]


async def subscriptions(pool: "Pool[asyncpg.Record]", subscription_no: int | None) -> list[Shown]:
    """Every subscription, or this one: what waits for it, and how its receiver does."""
    rows = await pool.fetch(_queries["subscriptions"], subscription_no)
    return [
        {
            **_named(dict(row)),
            "receiver": receiver_of(row["url"]),
            "held_until": row["held_until"] if row["failure_count"] >= FAILING_FROM_COUNT else None,
        }
        for row in rows
    ]


async def queued(
    pool: "Pool[asyncpg.Record]", subscription_no: int | None, state: str | None, limit: int
) -> list[Shown]:
    """What is still to be delivered, the oldest first; `state` one of QUEUE_STATES or None."""
    rows = await pool.fetch(_queries["queued"], subscription_no, state, limit)
    return [_named(dict(row)) for row in rows]


async def attempts(
    pool: "Pool[asyncpg.Record]", subscription_no: int | None, outcome: str | None, limit: int
) -> list[Shown]:
    """What was tried, the newest first; `outcome` one of OUTCOMES or None."""
    rows = await pool.fetch(_queries["attempts"], subscription_no, outcome, limit)
    return [_named(dict(row)) for row in rows]


async def partner_of(pool: "Pool[asyncpg.Record]", subscription_no: int) -> int | None:
    """Whose subscription it is, or None where there is none (any more)."""
    number: int | None = await pool.fetchval(_queries["partner_of_subscription"], subscription_no)
    return number


def receiver_of(url: str) -> str:
    """A URL up to its port: what comes after may hold a secret of the receiver's."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _named(row: Shown) -> Shown:
    """A row with names in place of numbers, and without its URL."""
    named: Shown = {"subscription_id": subscription_id(row.pop("subscription_no"))}
    if "event_no" in row:
        named["event_id"] = event_id(row.pop("event_no"))
    row.pop("url", None)
    return named | row
