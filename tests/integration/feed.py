"""Events put in place for tests of the feed: vouchers by SQL, numbered by the real sequencer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx2

from couponsvc.outbox.partitions import tend_partitions
from couponsvc.outbox.sequencing import Sequencer
from tests.integration.house import House

Pool = asyncpg.Pool

ISSUE = """
WITH raised AS (
  UPDATE drops SET issued = issued + $3 WHERE drop_id = $1 RETURNING drop_no, issued - $3 AS before
), partner AS (
  SELECT partner_no FROM partners WHERE partner_id = $2
), rows AS (
  INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no, code)
  SELECT drop_no, before + n, partner_no, 1, date_trunc('milliseconds', clock_timestamp()),
    'p-' || before + n, drop_no || '-' || before + n, 'CODE' || before + n
  FROM raised, partner, generate_series(1, $3::int) n
)
INSERT INTO outbox (type, drop_no, first_seq, last_seq)
SELECT 'voucher.issued', drop_no, before + 1, before + $3 FROM raised
"""

LISTENERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'couponsvc events' AND query LIKE 'SELECT%'
"""


async def prepare(pool: "Pool[asyncpg.Record]") -> None:
    """Make the partitions, as a relay does before anything else."""
    await tend_partitions(pool, datetime.now(UTC), events_kept_days=0, attempts_kept_days=30)


async def issue(pool: "Pool[asyncpg.Record]", drop_id: str, count: int = 1, partner: str = "bank-a") -> None:
    """Commit one batch of vouchers as the ledger does."""
    await pool.execute(ISSUE, drop_id, partner, count)


async def number(pool: "Pool[asyncpg.Record]") -> int:
    """Number everything that is in the outbox; how many events that made."""
    sequencer = Sequencer(pool)
    made = 0
    while (counts := await sequencer.run_once(datetime.now(UTC))).outbox_rows or counts.events:
        made += counts.events
    return made


async def issue_apart(
    pool: "Pool[asyncpg.Record]", drop_id: str, *counts: int, partner: str = "bank-a"
) -> None:
    """Commit batches of which each is numbered before the next, so that each makes an event of its own."""
    for count in counts:
        await issue(pool, drop_id, count, partner)
        await number(pool)


@contextlib.asynccontextmanager
async def numbering(pool: "Pool[asyncpg.Record]") -> AsyncIterator[None]:
    """Number all the time, as a running relay does."""
    sequencer = Sequencer(pool)

    async def go_on() -> None:
        while True:
            await sequencer.run_once(datetime.now(UTC))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def listening(house: House) -> AsyncIterator[None]:
    """Run the house's event waits, and go on once they listen."""
    waits = house.services.event_waits
    task = asyncio.create_task(waits.run())
    try:
        async with asyncio.timeout(10):
            while not await house.pool.fetchval(LISTENERS):
                await asyncio.sleep(0.01)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def page(house: House, query: str = "", by: str = "bank-a") -> dict[str, Any]:
    """A page of the feed."""
    answer = await house.call("GET", f"/v1/events{query}", by=by)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def everything(house: House, by: str = "bank-a", limit: int = 500) -> list[dict[str, Any]]:
    """The whole feed from its beginning."""
    events: list[dict[str, Any]] = []
    query = ""
    while (found := await page(house, f"?limit={limit}{query}", by))["events"]:
        events += found["events"]
        query = f"&after={found['next']}"
    return events


@dataclass
class Told:
    """One event of a stream, as a client of WHATWG HTML reads it."""

    cursor: str
    kind: str
    data: str


async def told(answer: httpx2.Response) -> AsyncIterator[Told | str]:
    """Events of a stream as they come; comments as text."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith(":"):
            yield line[1:].strip()
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Told(fields["id"], fields["event"], fields["data"])
            fields = {}
        else:
            fields = {}
