"""Relays on a real ledger, with a clock that a test moves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

from couponsvc.outbox.leasing import EVENTS_CHANNEL, Pool
from couponsvc.outbox.relay import Relay
from couponsvc.settings import Settings
from couponsvc.values.drop import Drop
from tests.integration.scene import issue

_TELL = """
WITH numbers AS (
  UPDATE event_counter SET last_event_no = last_event_no + $2 RETURNING last_event_no - $2 AS before
), drop_told AS (
  INSERT INTO drop_tellings AS t (drop_no, told_seq, opened_told) VALUES ($1, $2, true)
  ON CONFLICT (drop_no) DO UPDATE SET told_seq = t.told_seq + $2
  RETURNING told_seq - $2 AS seq
), sequenced AS (
  INSERT INTO event_sequences AS s (drop_no, partner_no, last_sequence) VALUES ($1, 1, $2)
  ON CONFLICT (drop_no, partner_no) DO UPDATE SET last_sequence = s.last_sequence + $2
  RETURNING last_sequence - $2 AS sequence
), told AS (
  INSERT INTO events (event_no, partner_no, drop_no, sequence, type, first_seq, last_seq, voucher_count,
                      occurred_at)
  SELECT before + n, 1, $1, sequence + n, 'voucher.issued', seq + n, seq + n, 1, $3
  FROM numbers, drop_told, sequenced, generate_series(1, $2::int) n
  RETURNING event_no
), gone AS (
  DELETE FROM outbox WHERE drop_no = $1
)
INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at)
SELECT subscription_no, event_no, $3, $3 FROM told, subscriptions
WHERE deleted_at IS NULL AND disabled_at IS NULL
"""


class Clock:
    """Stands still until it is moved."""

    def __init__(self, moment: datetime | None = None) -> None:
        self.moment = moment or datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.moment

    def move(self, **step: float) -> None:
        self.moment += timedelta(**step)


@contextlib.asynccontextmanager
async def opened(
    settings: Settings,
    clock: Callable[[], datetime] | None = None,
    jitter: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Relay]:
    """A relay that may deliver to loopback; closed at the end."""
    private = settings.model_copy(update={"webhook_allow_private": True})
    relay = await Relay.open(private, clock=clock, jitter=jitter)
    try:
        yield relay
    finally:
        await relay.close()


@contextlib.asynccontextmanager
async def at_work(relay: Relay) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A relay that runs until what this gives is called, which says how it ended, or else the block ends."""
    stop = asyncio.Event()
    running = asyncio.create_task(relay.run(stop))

    async def end() -> None:
        stop.set()
        await running

    try:
        yield end
    finally:
        stop.set()
        await asyncio.gather(running, return_exceptions=True)


async def tell(pool: Pool, drop: Drop, count: int, now: datetime | None = None) -> None:
    """So many vouchers with an event each, queued for every subscription; a relay would make few of them.

    A relay must have been opened before: it makes the partitions.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM event_counter FOR UPDATE")  # no relay numbers meanwhile
        await issue(connection, drop, count)  # type: ignore[arg-type] # it only executes
        await connection.execute(_TELL, drop.drop_no, count, now or datetime.now(UTC))
        await connection.execute("SELECT pg_notify($1, '')", EVENTS_CHANNEL)
