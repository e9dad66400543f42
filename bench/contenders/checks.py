"""What must hold after a run, read from Redis and Postgres directly and not from the contender."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, cast

import asyncpg
from redis.asyncio import Redis

from bench.contender import Engines
from bench.contenders.contract import DROP_ID, QUANTITY

PATIENCE_S: Final = 3.0
"""For what was answered and is not settled yet, or in flight when the generator was stopped."""
POLL_S: Final = 0.1
PAGE_COUNT: Final = 10_000
STOCK, PERSONS, GRANTS = f"stock:{DROP_ID}", f"persons:{DROP_ID}", f"grants:{DROP_ID}"
SCHEMA: Final = (Path(__file__).parent / "sql" / "ledger.sql").read_text("utf-8")
Entry = tuple[bytes, dict[bytes, bytes]]
LEDGER: Final = """
SELECT count(*)                                             AS vouchers,
       count(DISTINCT person_token)                         AS persons,
       (SELECT count(*) FROM outbox)                        AS events,
       (SELECT count(DISTINCT seq) FROM outbox JOIN vouchers USING (drop_id, seq)) AS told,
       (SELECT coalesce(sum(issued), 0) FROM stock)         AS counted,
       (SELECT count(*) FROM tickets)                       AS tickets
FROM vouchers
"""


async def stock_redis(engines: Engines) -> None:
    """Put the stock into an empty Redis."""
    async with Redis.from_url(engines.redis_url) as redis:
        await redis.set(STOCK, QUANTITY)


async def make_tables(engines: Engines, tickets_count: int = 0) -> None:
    """Make the tables anew, with the drop's row and this many tickets, as vacuumed as a morning's."""
    connection = await asyncpg.connect(engines.postgres_dsn)
    try:
        await connection.execute(SCHEMA)
        await connection.execute("INSERT INTO stock (drop_id, quantity) VALUES ($1, $2)", DROP_ID, QUANTITY)
        await connection.execute(
            "INSERT INTO tickets SELECT n, $1 FROM generate_series(1, $2::integer) AS n",
            DROP_ID,
            tickets_count,
        )
        await connection.execute("VACUUM ANALYZE tickets")
        await connection.execute("VACUUM ANALYZE stock")
    finally:
        await connection.close()


async def patiently(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """What `look` still finds wrong once nothing is in flight any more."""
    give_up_at = time.monotonic() + PATIENCE_S
    while (wrong := await look()) and time.monotonic() < give_up_at:  # noqa: ASYNC110 - a database
        await asyncio.sleep(POLL_S)
    return wrong


async def ledger(engines: Engines) -> asyncpg.Record:
    """Counts of the tables, all of one instant."""
    connection = await asyncpg.connect(engines.postgres_dsn)
    try:
        record = await connection.fetchrow(LEDGER)
    finally:
        await connection.close()
    assert record is not None
    return record


async def redis_counts(engines: Engines) -> tuple[int, int]:
    """Units taken and persons noted."""
    async with Redis.from_url(engines.redis_url) as redis:
        pipeline = redis.pipeline()
        pipeline.get(STOCK)
        pipeline.scard(PERSONS)
        stock, persons = await pipeline.execute()
    return QUANTITY - int(stock), persons


async def queue_violations(engines: Engines, answered: int) -> list[str]:
    """Level C: units taken = persons noted = grants queued, each of another person."""
    taken, noted = await redis_counts(engines)
    queued: set[bytes] = set()
    entries_count, after = 0, "-"
    async with Redis.from_url(engines.redis_url) as redis:
        while page := cast("list[Entry]", await redis.xrange(GRANTS, after, "+", PAGE_COUNT)):
            entries_count += len(page)
            queued.update(fields[b"person"] for _, fields in page)
            after = "(" + page[-1][0].decode()
    return [
        *differing("units taken", taken, "grants queued", entries_count),
        *differing("persons noted", noted, "grants queued", entries_count),
        *differing("persons in the queue", len(queued), "grants queued", entries_count),
        *differing("answered 2xx", answered, "grants queued", entries_count),
    ]


async def ledger_violations(engines: Engines, answered: int, taken_name: str) -> list[str]:
    """Level D: units taken = vouchers = persons = outbox rows; `taken_name` is a column of the counts."""
    counts = await ledger(engines)
    vouchers = counts["vouchers"]
    return [
        *differing("persons", counts["persons"], "vouchers", vouchers),
        *differing("outbox rows", counts["events"], "vouchers", vouchers),
        *differing("vouchers told of", counts["told"], "vouchers", vouchers),
        *differing("units taken", counts[taken_name], "vouchers", vouchers),
        *differing("answered 2xx", answered, "vouchers", vouchers),
    ]


def differing(one: str, one_count: int, other: str, other_count: int) -> list[str]:
    """A sentence where two counts differ."""
    return [] if one_count == other_count else [f"{one}: {one_count}, but {other}: {other_count}"]
