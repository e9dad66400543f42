"""Asking for events again, and seeing what became of each.

What is asked for again begins its ladder of attempts anew, due at once. An event whose delivery a
relay is at is left to it: it is being sent.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

import asyncpg

from couponsvc import limits
from couponsvc.outbox import subscriptions
from couponsvc.outbox.partitions import EVENTS_PER_PARTITION_COUNT
from couponsvc.outbox.subscriptions import Connection, Pool, Subscription
from couponsvc.support.sql import Queries
from couponsvc.values.event import EVENT_NO_MAX, TYPE_OF_PUBLIC, EventType, event_id

CHUNK_COUNT: Final = 10_000
"""Queue rows written by one statement and commit: well within its timeout. Relays pass over them so long."""
NAMED_MAX_COUNT: Final = 1_000
"""Events that one question may name."""
ATTEMPTS_SHOWN_MAX_COUNT: Final = 20
"""Of one delivery, the newest: two whole ladders."""

QueueState: TypeAlias = Literal["waiting", "delivering", "parked"]
DeliveryState: TypeAlias = Literal["waiting", "delivering", "parked", "delivered"]

SQL: Final = Queries("couponsvc.outbox", "redelivery")


class RedeliveryRefused(Exception):
    """Nothing was queued; the message says why, and what to do."""


class SubscriptionUnknown(RedeliveryRefused):
    """The partner has no such subscription."""


class SubscriptionDisabled(RedeliveryRefused):
    """The receiver answered 410: it wants nothing."""


class EventUnknown(RedeliveryRefused):
    """The partner has no such event, or it is no longer kept."""


class TooManyEvents(RedeliveryRefused):
    """More than limits.REDELIVER_MAX_COUNT events, or more than NAMED_MAX_COUNT names."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to deliver, as it ended."""

    attempt_no: int
    attempted_at: datetime
    took_ms: int
    status: int | None
    outcome: str
    error: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to a subscription."""

    event_no: int
    state: DeliveryState
    type: str | None
    """Public name; None where the event is no longer kept."""
    occurred_at: datetime | None
    due_at: datetime | None
    """When it is tried (again); None where it is not."""
    parked_because: str | None
    attempts: Sequence[Attempt]
    """The newest first, at most ATTEMPTS_SHOWN_MAX_COUNT."""


async def redeliver(
    pool: Pool,
    partner_no: int,
    subscription_no: int,
    now: datetime | None = None,
    *,
    event_ids: Sequence[int] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    parked: bool = False,
) -> int:
    """Queue events once more: those named, those of a time, or those that were given up.

    Piece by piece, each committed by itself, so that nothing else waits for many. Asked again, the same
    are due once more, each once, except those that were sent meanwhile and named: they are sent again.

    Args:
        pool: Connections.
        partner_no: Whose subscription it is.
        subscription_no: To whom.
        now: Due then. None: at once, by Postgres' clock, which is that of relays, too.
        event_ids: Numbers of events of the partner's, whatever the subscription asks for.
        since: What happened from then on, of the types and drops that the subscription asks for …
        until: … and before then.
        parked: All that was given up, the oldest first; where that is more than
            limits.REDELIVER_MAX_COUNT, ask again.

    Returns:
        How many were queued.

    Raises:
        RedeliveryRefused: nothing was.
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: some may have been; asking
            again queues all of them.
    """
    ways = (event_ids is not None) + (since is not None and until is not None) + parked
    assert ways == 1, "events are asked for in one way"  # noqa: S101
    async with pool.acquire() as connection:
        subscription = await _find(connection, partner_no, subscription_no)
        if event_ids is not None:
            count = await _queue_named(connection, subscription, sorted(set(event_ids)), now)
        elif since is not None and until is not None:
            count = await _queue_between(connection, subscription, since, until, now)
        else:
            count = await _unpark(connection, subscription_no, now)
        await connection.execute(subscriptions.SQL["lift_hold"], subscription_no)
        await connection.execute(SQL["announce"], str(partner_no))
    return count


async def deliveries(
    pool: Pool,
    subscription_no: int,
    *,
    state: DeliveryState | None = None,
    before: int = EVENT_NO_MAX,
    limit: int = 100,
) -> list[Delivery]:
    """What became of events, the newest first: one page. The caller knows whose subscription it is.

    Args:
        pool: Connections.
        subscription_no: To whom.
        state: Only these.
        before: Only events before this one.
        limit: At most so many; fewer are the last page.
    """
    states: dict[int, DeliveryState] = {}
    if state in {None, "delivered"}:
        rows = await pool.fetch(SQL["delivered_deliveries"], subscription_no, before, limit)
        states = {row["event_no"]: "delivered" for row in rows}
    if state != "delivered":
        rows = await pool.fetch(SQL["queued_deliveries"], subscription_no, before, state, limit)
        states |= {row["event_no"]: row["state"] for row in rows}
    numbers = sorted(states, reverse=True)[:limit]
    found = await pool.fetch(SQL["read_deliveries"], subscription_no, numbers)
    attempts = await _attempts(pool, subscription_no, numbers)
    rows_by_number = {row["event_no"]: row for row in found}
    return [_delivery(rows_by_number[number], states[number], attempts.get(number, ())) for number in numbers]


async def _find(connection: Connection, partner_no: int, subscription_no: int) -> Subscription:
    subscription = await subscriptions.find(connection, partner_no, subscription_no)
    if subscription is None:
        raise SubscriptionUnknown("There is no such subscription.")
    if subscription.disabled_at is not None:
        raise SubscriptionDisabled("The receiver answered 410; delete the subscription and make a new one.")
    return subscription


async def _queue_named(
    connection: Connection, subscription: Subscription, event_nos: Sequence[int], now: datetime | None
) -> int:
    if len(event_nos) > NAMED_MAX_COUNT:
        raise TooManyEvents(f"Name at most {NAMED_MAX_COUNT} events, or say from when to when.")
    rows = await connection.fetch(SQL["find_events"], subscription.partner_no, event_nos)
    if unknown := sorted(set(event_nos) - {row["event_no"] for row in rows}):
        raise await _unknown(connection, unknown[0])
    return await _queue(connection, subscription, event_nos, now)


async def _unknown(connection: Connection, event_no: int) -> EventUnknown:
    """Whether there was such an event nobody knows, but from where on there is any."""
    oldest = await connection.fetchval(SQL["oldest_partition"]) or 0
    if event_no < oldest * EVENTS_PER_PARTITION_COUNT:
        return EventUnknown(f"The event {event_id(event_no)} is no longer kept.")
    return EventUnknown(f"There is no event {event_id(event_no)}.")


async def _queue_between(
    connection: Connection,
    subscription: Subscription,
    since: datetime,
    until: datetime,
    now: datetime | None,
) -> int:
    kinds = [kind.value for kind in (TYPE_OF_PUBLIC.get(name) for name in subscription.types) if kind]
    arguments = (subscription.subscription_no, since, until, kinds)
    most = limits.REDELIVER_MAX_COUNT
    if await connection.fetchval(SQL["count_between"], *arguments, most + 1) > most:
        raise TooManyEvents(f"That is more than {most} events; ask for a shorter time.")
    queued_count = last = 0
    while True:
        rows = await connection.fetch(SQL["events_between"], *arguments, last, CHUNK_COUNT)
        if rows:
            event_nos = [row["event_no"] for row in rows]
            queued_count += await _queue(connection, subscription, event_nos, now)
            last = event_nos[-1]
        if len(rows) < CHUNK_COUNT:
            return queued_count


async def _queue(
    connection: Connection, subscription: Subscription, event_nos: Sequence[int], now: datetime | None
) -> int:
    arguments = (subscription.partner_no, subscription.subscription_no, now, event_nos)
    again: int = await connection.fetchval(SQL["requeue"], *arguments)
    new: int = await connection.fetchval(SQL["queue_new"], *arguments)
    return again + new


async def _unpark(connection: Connection, subscription_no: int, now: datetime | None) -> int:
    count = 0
    while count < limits.REDELIVER_MAX_COUNT:
        most = min(CHUNK_COUNT, limits.REDELIVER_MAX_COUNT - count)
        queued = await connection.fetchval(SQL["unpark"], subscription_no, now, most)
        count += queued
        if queued < most:
            break
    return count


async def _attempts(pool: Pool, subscription_no: int, event_nos: Sequence[int]) -> dict[int, list[Attempt]]:
    rows = await pool.fetch(SQL["read_attempts"], subscription_no, event_nos, ATTEMPTS_SHOWN_MAX_COUNT)
    attempts: defaultdict[int, list[Attempt]] = defaultdict(list)
    for event_no, *columns in rows:
        attempts[event_no].append(Attempt(*columns))
    return attempts


def _delivery(row: asyncpg.Record, state: DeliveryState, attempts: Sequence[Attempt]) -> Delivery:
    known = {kind.value: kind.public for kind in EventType}
    return Delivery(
        event_no=row["event_no"],
        state=state,
        type=None if row["type"] is None else known.get(row["type"], row["type"]),
        occurred_at=row["occurred_at"],
        due_at=row["due_at"] if state == "waiting" else None,
        parked_because=row["parked_because"],
        attempts=attempts,
    )
