"""Events put in place for tests of the feed: vouchers by SQL, numbered by the real sequencer."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx2
from redis.asyncio import Redis

from couponsvc.outbox.partitions import tend_partitions
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.processes.api import run_api
from couponsvc.settings import Settings
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


async def forget_the_first_million(house: House) -> None:
    """As if the first partition were full, and dropped for its age."""
    await house.pool.execute("UPDATE event_counter SET last_event_no = 1000000")
    await prepare(house.pool)
    await house.pool.execute("DROP TABLE events_0")


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


@dataclass
class Place:
    """What a client would send as `Last-Event-ID`."""

    last_event_id: str = ""


async def told(answer: httpx2.Response, place: Place | None = None) -> AsyncIterator[Told | str]:
    """Events of a stream as they come, by the rules of WHATWG HTML, 9.2.6; comments as text.

    An empty line takes over the id, whether or not there is an event to dispatch.
    """
    place = place or Place()
    kind = data = ""
    last_id = place.last_event_id
    async for line in answer.aiter_lines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "" if line:
                yield value
            case "":
                place.last_event_id = last_id
                if data:
                    yield Told(last_id, kind or "message", data.removesuffix("\n"))
                kind = data = ""
            case "id" if "\0" not in value:
                last_id = value
            case "event":
                kind = value
            case "data":
                data += value + "\n"


@dataclass
class Served:
    """The API over HTTP, and how to stop it."""

    house: House
    url: str
    stop: asyncio.Event
    running: "asyncio.Task[None]"

    @contextlib.asynccontextmanager
    async def listen(
        self, query: str = "", *, by: str = "bank-a", last_event_id: str | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """An open stream."""
        headers = {"authorization": f"Bearer {self.house.tokens[by]}", "accept": "text/event-stream"}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        async with (
            httpx2.AsyncClient(trust_env=False, verify=False, timeout=30) as client,
            client.stream("GET", f"{self.url}/v1/events/stream{query}", headers=headers) as answer,
        ):
            yield answer


@contextlib.asynccontextmanager
async def serving(settings: Settings, pool: "Pool[asyncpg.Record]", redis: Redis) -> AsyncIterator[Served]:
    """A house that is also served over HTTP, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = settings.model_copy(update={"port": probe.getsockname()[1]})
    await prepare(pool)
    stop = asyncio.Event()
    async with House.open(settings, pool, redis) as house:
        running = asyncio.create_task(run_api(settings, stop))
        url = f"http://127.0.0.1:{settings.port}"
        async with httpx2.AsyncClient(trust_env=False, verify=False) as client, asyncio.timeout(20):
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    await client.get(f"{url}/livez")
                    break
                await asyncio.sleep(0.02)
        yield Served(house, url, stop, running)
        stop.set()
        await running


async def take(answer: httpx2.Response, count: int) -> list[Told]:
    """The next events, comments left out."""
    events: list[Told] = []
    async with asyncio.timeout(20):
        async for item in told(answer):
            if isinstance(item, Told):
                events.append(item)
            if len(events) == count:
                break
    return events


async def waiting_count(served: Served) -> float:
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        text = (await client.get(f"{served.url}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("couponsvc_feed_waiting ")]
    return float(lines[0].split()[1])


async def waiters(served: Served, count: int) -> None:
    async with asyncio.timeout(10):
        while await waiting_count(served) != count:
            await asyncio.sleep(0.02)
