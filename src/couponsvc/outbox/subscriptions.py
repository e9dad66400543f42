"""Where partners want their events sent: made, listed, given new secrets, tested, ended.

A secret is shown to its partner once and kept sealed for its subscription. What belongs to another
partner is not there: every function takes the partner and answers as it would for a number never used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from couponsvc import limits
from couponsvc.outbox.retries import FAILING_FROM_COUNT
from couponsvc.support.sealing import MasterKey
from couponsvc.support.sql import Queries
from couponsvc.support.webhook_signature import new_secret
from couponsvc.values.event import EventType, subscription_id

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

SECRET_PURPOSE: Final = "webhook secret"  # noqa: S105 - names a purpose, is not one
"""Of sealing; the owner is the subscription's name. What is sealed is the text that the partner has."""
ROTATION: Final = timedelta(seconds=limits.WEBHOOK_ROTATION_S)
ROTATION_REPEATED: Final = timedelta(minutes=5)
"""A rotation asked for again within this lost its answer: nobody has the secret that it replaces."""
EMPTIED_MAX_COUNT: Final = 5_000
"""Queued deliveries removed together with a subscription: some tenths of a second. A relay removes more."""

SQL: Final = Queries("couponsvc.outbox", "subscriptions")


class UnknownDrop(Exception):
    """A subscription names a drop that the partner does not see. Nothing was made."""

    def __init__(self, drop_id: str) -> None:
        super().__init__(f"There is no drop named {drop_id}.")
        self.drop_id: Final = drop_id


class TooMany(Exception):
    """The partner has as many subscriptions as it may. Nothing was made."""

    def __init__(self) -> None:
        most = limits.SUBSCRIPTIONS_PER_PARTNER_MAX_COUNT
        super().__init__(f"There are {most} subscriptions, and no more may be; delete one first.")


class AlreadySubscribed(Exception):
    """A working subscription says just this; a second one would double every delivery."""

    def __init__(self, subscription_no: int) -> None:
        super().__init__(f"{subscription_id(subscription_no)} says the same already.")
        self.subscription_no: Final = subscription_no


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it stands, without its secrets."""

    subscription_no: int
    partner_no: int
    url: str
    types: tuple[str, ...]
    """Public names of event types, in alphabetical order."""
    drop_ids: tuple[str, ...] | None
    """None: every drop of the partner, present and future."""
    created_at: datetime
    disabled_at: datetime | None
    """When the receiver answered 410; it gets nothing since."""
    failure_count: int
    """Attempts that failed since the last one that did not."""
    held_until: datetime | None
    """While the receiver fails, nothing is tried before this."""
    previous_until: datetime | None
    """Until when the secret before the newest one signs too."""


async def create(  # noqa: PLR0917 - what a subscription says, in the order of its columns
    pool: Pool,
    master_key: MasterKey,
    partner_no: int,
    url: str,
    types: Sequence[str],
    drop_ids: Sequence[str] | None,
) -> tuple[Subscription, str]:
    """Make a subscription. The caller has checked the URL (`guarded_url.check_url`) and the types.

    Returns:
        The subscription and its secret, which is shown to the partner this once.

    Raises:
        UnknownDrop, TooMany, AlreadySubscribed: nothing was made.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.fetchval(SQL["lock_partner"], partner_no)
        drop_nos = None
        if drop_ids is not None:
            rows = await connection.fetch(SQL["number_drops"], partner_no, list(drop_ids))
            drop_nos = [row["drop_no"] for row in rows]
            if unknown := sorted(set(drop_ids) - {row["drop_id"] for row in rows}):
                raise UnknownDrop(unknown[0])
        saying = (url, sorted(types), drop_nos)
        standing = await connection.fetchrow(SQL["count_subscriptions"], partner_no, *saying)
        assert standing is not None, "an aggregate has one row"  # noqa: S101
        if standing["same_no"] is not None:
            raise AlreadySubscribed(standing["same_no"])
        if standing["subscription_count"] >= limits.SUBSCRIPTIONS_PER_PARTNER_MAX_COUNT:
            raise TooMany
        number = await connection.fetchval(SQL["next_subscription_no"])
        secret = new_secret()
        sealed = _seal(master_key, secret, number)
        await connection.execute(SQL["insert_subscription"], number, partner_no, *saying, sealed)
        row = await connection.fetchrow(SQL["read_subscriptions"], partner_no, number)
    assert row is not None, "it was just inserted"  # noqa: S101
    return _subscription(row), secret


async def list_live(pool: Pool, partner_no: int) -> list[Subscription]:
    """The partner's subscriptions, disabled ones too, in the order in which they were made."""
    return [_subscription(row) for row in await pool.fetch(SQL["read_subscriptions"], partner_no, None)]


async def find(pool: "Pool | Connection", partner_no: int, subscription_no: int) -> Subscription | None:
    """A subscription of the partner's, or None."""
    row = await pool.fetchrow(SQL["read_subscriptions"], partner_no, subscription_no)
    return None if row is None else _subscription(row)


async def delete(pool: Pool, partner_no: int, subscription_no: int, now: datetime | None = None) -> bool:
    """End a subscription with everything that is queued for it.

    A delivery that a relay is at may still arrive. Of a long queue a relay removes the rest.

    Args:
        pool: Connections.
        partner_no: Whose it is.
        subscription_no: Which.
        now: It ended then. None: now, by Postgres' clock.

    Returns:
        False where there is none (any more).
    """
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(SQL["delete_subscription"], partner_no, subscription_no, now) is None:
            return False
        await connection.execute(SQL["empty_queue"], subscription_no, EMPTIED_MAX_COUNT)
    return True


async def rotate(
    pool: Pool, master_key: MasterKey, partner_no: int, subscription_no: int, now: datetime | None = None
) -> str | None:
    """Give a subscription a new secret; the old one signs beside it for limits.WEBHOOK_ROTATION_S.

    Two secrets at most are live: rotated again later within that time, the oldest one ends. Asked
    again within five minutes, the old one stays and the newest is replaced: an answer that was lost
    must not cost the receiver the secret it has.

    Args:
        pool: Connections.
        master_key: What seals secrets.
        partner_no: Whose it is.
        subscription_no: Which.
        now: When the rotation begins. None: now, by Postgres' clock.

    Returns:
        The new secret, shown this once; None where there is no such subscription.
    """
    secret = new_secret()
    found = await pool.fetchval(
        SQL["rotate_secret"],
        partner_no,
        subscription_no,
        _seal(master_key, secret, subscription_no),
        now,
        ROTATION,
        ROTATION_REPEATED,
    )
    return None if found is None else secret


async def wipe_ended_secrets(pool: Pool, now: datetime) -> None:
    """Remove every secret that was replaced and signs no more.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    await pool.execute(SQL["wipe_ended_secrets"], now)


async def find_ended(pool: Pool, subscription_nos: Sequence[int]) -> list[int]:
    """Which of these numbers are those of no subscription (any more), of whichever partner.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    return [row["subscription_no"] for row in await pool.fetch(SQL["find_ended"], subscription_nos)]


async def request_test(pool: Pool, partner_no: int, subscription_no: int) -> bool:
    """Have a `webhook.test` event sent to a subscription, also where its receiver was failing.

    Returns:
        False where there is no such subscription, or it is disabled.
    """
    async with pool.acquire() as connection, connection.transaction():
        kind = EventType.WEBHOOK_TEST.value
        found = await connection.fetchval(SQL["request_test"], partner_no, subscription_no, kind)
        if found is not None:
            await connection.execute(SQL["lift_hold"], subscription_no)
    return found is not None


def _seal(master_key: MasterKey, secret: str, subscription_no: int) -> bytes:
    return master_key.seal(secret.encode("ascii"), SECRET_PURPOSE, subscription_id(subscription_no))


def _subscription(row: asyncpg.Record) -> Subscription:
    return Subscription(
        subscription_no=row["subscription_no"],
        partner_no=row["partner_no"],
        url=row["url"],
        types=tuple(row["types"]),
        drop_ids=None if row["drop_ids"] is None else tuple(row["drop_ids"]),
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
        failure_count=row["failure_count"],
        held_until=row["held_until"] if row["failure_count"] >= FAILING_FROM_COUNT else None,
        previous_until=row["previous_until"],
    )
