"""What one read brings: the stragglers of a wave with the first, a lonely entry at once."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.ledger.inbox import Inbox
from couponsvc.ledger.stream import GrantStream
from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import open_line
from couponsvc.values import keys, wire
from tests.ledgers import SHARD, grant

GRANTS = keys.grants_key(SHARD)
PATIENCE_MS = 2_000


def fields(size: int = 1) -> dict[Any, Any]:
    grants = [grant(f"person-{i:040}", f"n{i}", place=i) for i in range(size)]
    return {
        "v": wire.ENTRY_VERSION,
        "o": wire.encode_origin("origin", 1),
        "t": "1",
        "d": wire.encode_drops([(1, 1)]),
        "g": msgspec.msgpack.encode(grants),
    }


@pytest.fixture
async def inbox(redis_url: str) -> AsyncIterator[Inbox]:
    stream = GrantStream(
        partial(open_line, make_connection(redis_url), timeout_s=5.0), GRANTS, keys.GROUP, "me"
    )
    yield Inbox(stream, limits.TAKE_OVER_IDLE_MS)
    stream.close()


async def add(redis: Redis, count: int) -> None:
    """So many entries in one write, each a command of its own: the first one wakes who waits."""
    pipeline = redis.pipeline(transaction=False)
    for _ in range(count):
        pipeline.xadd(GRANTS, fields())
    await pipeline.execute()


async def read_while_adding(inbox: Inbox, redis: Redis, count: int) -> int:
    reading = asyncio.create_task(inbox.read(PATIENCE_MS))
    while not (await redis.info("clients"))["blocked_clients"]:
        await asyncio.sleep(0.005)
    await add(redis, count)
    return len((await reading).entries)


async def test_after_a_wave_the_first_of_the_next_one_waits_for_the_others(
    inbox: Inbox, redis: Redis
) -> None:
    await add(redis, 8)
    assert len((await inbox.read(PATIENCE_MS)).entries) == 8
    assert await read_while_adding(inbox, redis, 6) == 6


async def test_after_a_lonely_entry_the_next_one_is_settled_at_once(inbox: Inbox, redis: Redis) -> None:
    await add(redis, 1)
    assert len((await inbox.read(PATIENCE_MS)).entries) == 1
    assert await read_while_adding(inbox, redis, 6) == 1


async def test_while_reads_come_back_full_more_are_merged(inbox: Inbox, redis: Redis) -> None:
    await add(redis, 2 * limits.DRAIN_READ_COUNT + 5)
    assert len((await inbox.read(PATIENCE_MS)).entries) == 2 * limits.DRAIN_READ_COUNT + 5


async def test_a_delivery_stays_near_what_one_transaction_takes(inbox: Inbox, redis: Redis) -> None:
    for _ in range(limits.DRAIN_READ_COUNT + 10):
        await redis.xadd(GRANTS, fields(limits.BATCH_MAX_COUNT // 4))
    first = await inbox.read(PATIENCE_MS)
    assert len(first.entries) == limits.DRAIN_READ_COUNT
    assert len((await inbox.read(PATIENCE_MS)).entries) == 10
