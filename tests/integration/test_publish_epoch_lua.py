"""publish_epoch, fence_drop, unload_epoch and mend_backlog .lua: loading, opening, fencing, removing."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from couponsvc import limits
from couponsvc.gate.loading import (
    FenceResult,
    LoadIncomplete,
    LoadRefused,
    UnloadResult,
    fence_drop,
    load_epoch,
    mend_backlog,
    publish_new_drop,
    unload_epoch,
)
from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from tests.integration.scene import any_drop, counters, grab, holders, published, rows_of

TWO = ["1:1:a", "n1 1 5 C1", "1:1:b", "n2 2 6 C2"]


async def test_a_new_drop_opens_with_its_whole_quantity(redis: Redis) -> None:
    drop = any_drop()
    assert await publish_new_drop(redis, drop) is True
    assert await counters(redis, drop) == (10, 0, 0, 10)
    assert await published(redis, drop) == 1
    assert await grab(redis, drop, "a") == "G"


async def test_publishing_a_drop_twice_keeps_what_was_granted_between(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a")
    assert await publish_new_drop(redis, drop) is False
    assert await counters(redis, drop) == (9, 1, 0, 10)
    assert await holders(redis, drop) == {b"1:1:a": b"7-a"}


async def test_a_loaded_epoch_knows_its_holders_and_sells_the_rest(redis: Redis) -> None:
    drop = any_drop(epoch=4, quantity=3, version=8)
    await load_epoch(redis, drop, 2, rows_of(TWO[:2], TWO[2:]))
    assert await counters(redis, drop) == (1, 0, 2, 3)
    assert await redis.hget(keys.state_key(0, 7, 4), "version") == b"8"
    assert await grab(redis, drop, "a", "c", "d") == "LGS"


@pytest.mark.parametrize("standing", [4, 5, -4, -5])
async def test_an_epoch_that_is_not_newer_is_refused_and_leaves_no_key(redis: Redis, standing: int) -> None:
    await redis.hset(keys.shard_key(0), keys.epoch_field(7), str(standing))
    with pytest.raises(LoadRefused):
        await load_epoch(redis, any_drop(epoch=4), 2, rows_of(TWO))
    assert await redis.keys("*") == [keys.shard_key(0).encode()]
    assert await redis.hget(keys.shard_key(0), keys.epoch_field(7)) == str(standing).encode()


@pytest.mark.parametrize("standing", [3, -3])
async def test_an_epoch_newer_by_one_is_published(redis: Redis, standing: int) -> None:
    await redis.hset(keys.shard_key(0), keys.epoch_field(7), str(standing))
    drop = any_drop(epoch=4)
    await load_epoch(redis, drop, 2, rows_of(TWO))
    assert await published(redis, drop) == 4


@pytest.mark.parametrize(("issued", "quantity"), [(1, 10), (3, 10), (2, 1)])
async def test_holders_that_are_not_as_many_as_issued_are_not_published(
    redis: Redis, issued: int, quantity: int
) -> None:
    drop = any_drop(epoch=2, quantity=quantity)
    with pytest.raises(LoadIncomplete):
        await load_epoch(redis, drop, issued, rows_of(TWO))
    assert await redis.dbsize() == 0


async def test_leftovers_of_a_loader_that_died_are_removed_first(redis: Redis) -> None:
    drop = any_drop(epoch=2)
    await redis.hset(keys.holders_key(0, 7, 2), "1:1:ghost", "n9 9 9 C9")
    await load_epoch(redis, drop, 2, rows_of(TWO))
    assert sorted(await holders(redis, drop)) == [b"1:1:a", b"1:1:b"]


async def test_a_second_loader_of_an_open_epoch_does_not_touch_it(redis: Redis) -> None:
    drop = any_drop(epoch=2)
    await load_epoch(redis, drop, 2, rows_of(TWO))
    await grab(redis, drop, "c")
    with pytest.raises(LoadRefused):
        await load_epoch(redis, drop, 2, rows_of(TWO))
    assert await counters(redis, drop) == (7, 1, 2, 10)
    assert len(await holders(redis, drop)) == 3


async def test_a_chunk_of_the_full_size_is_loaded(redis: Redis) -> None:
    count = limits.LOAD_CHUNK_COUNT
    chunk = [text for n in range(1, count + 1) for text in (f"1:1:p{n}", f"n{n} {n} 5 C{n}")]
    drop = any_drop(epoch=2, quantity=count)
    await load_epoch(redis, drop, count, rows_of(chunk))
    assert await counters(redis, drop) == (0, 0, count, count)


async def test_out_of_memory_publishes_nothing(redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            await publish_new_drop(redis, any_drop())
    finally:
        await redis.config_set("maxmemory", "0")
    assert await redis.dbsize() == 0


async def test_a_fenced_drop_refuses_grabs_until_a_newer_epoch_is_open(redis: Redis) -> None:
    drop = any_drop(epoch=3)
    await publish_new_drop(redis, drop)
    newer = replace(drop, epoch=4)
    assert await fence_drop(redis, newer) is FenceResult.FENCED
    assert await published(redis, drop) == -3
    assert await grab(redis, drop, "a") == "F"
    with pytest.raises(LoadRefused):
        await load_epoch(redis, drop, 0, rows_of())
    await load_epoch(redis, newer, 0, rows_of())
    assert await grab(redis, newer, "a") == "G"


@pytest.mark.parametrize(
    ("standing", "epoch", "expected", "afterwards"),
    [
        (None, 4, FenceResult.CLOSED, None),
        (-3, 4, FenceResult.CLOSED, b"-3"),
        (4, 4, FenceResult.OPEN, b"4"),
        (5, 4, FenceResult.OPEN, b"5"),
        (3, 4, FenceResult.FENCED, b"-3"),
    ],
)
async def test_a_fence_closes_only_what_is_older(
    redis: Redis, standing: int | None, epoch: int, expected: FenceResult, afterwards: bytes | None
) -> None:
    if standing is not None:
        await redis.hset(keys.shard_key(0), keys.epoch_field(7), str(standing))
    assert await fence_drop(redis, any_drop(epoch=epoch)) is expected
    assert await redis.hget(keys.shard_key(0), keys.epoch_field(7)) == afterwards


async def test_unloading_spares_the_published_epoch(redis: Redis) -> None:
    old, new = any_drop(epoch=1), any_drop(epoch=2)
    await publish_new_drop(redis, old)
    await publish_new_drop(redis, new)
    assert await unload_epoch(redis, 0, 7, 2) is UnloadResult.OPEN
    assert await unload_epoch(redis, 0, 7, 1) is UnloadResult.UNLOADED
    assert sorted(await redis.keys("*")) == [keys.state_key(0, 7, 2).encode(), keys.shard_key(0).encode()]


async def test_processes_hear_of_a_published_epoch(redis: Redis, redis_url: str) -> None:
    listener = open_redis(redis_url)
    async with listener.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(keys.control_channel(0))
        await subscription.get_message(timeout=1)
        await publish_new_drop(redis, any_drop())
        message = await subscription.get_message(timeout=2)
        assert message is not None
        assert message["data"] == b"7"
    await listener.aclose()


async def test_a_backlog_is_forgotten_only_where_the_stream_is_empty(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    assert await mend_backlog(redis, 0) == 0
    assert await redis.hexists(keys.shard_key(0), keys.BACKLOG_FIELD) is False
    await grab(redis, drop, "a", "b")
    assert await mend_backlog(redis, 0) == 0
    assert await redis.hget(keys.shard_key(0), keys.BACKLOG_FIELD) == b"2"
    await redis.delete(keys.grants_key(0))
    assert await mend_backlog(redis, 0) == 2
    assert await redis.hget(keys.shard_key(0), keys.BACKLOG_FIELD) == b"0"
