"""Rebuilding a drop from Postgres: what it loads, and that nobody who is late can harm."""

import asyncio

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from couponsvc.gate.loading import LoadIncomplete, publish_new_drop
from couponsvc.programs.operations import Operator, restock
from couponsvc.reconcile.rebuild import Overtaken, load_raised, raise_epoch, rebuild
from couponsvc.reconcile.snapshot import Pool
from couponsvc.values import keys
from tests.integration.scene import (
    counters,
    drop_now,
    expected_holders,
    grab,
    holders,
    issue,
    make_drop,
    published,
)


async def test_a_wiped_redis_gets_exactly_the_holders_of_postgres(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool, quantity=5_000)
    await issue(pool, drop, 4_321)  # more than two chunks
    assert await rebuild(pool, redis, drop, 0) == 2
    drop = await drop_now(pool, drop.drop_no)
    assert await counters(redis, drop) == (679, 0, 4_321, 5_000)
    assert await holders(redis, drop) == await expected_holders(pool, drop)
    assert await grab(redis, drop, "p-1", "new") == "LG"


async def test_keys_of_older_epochs_are_removed(pool: "Pool[asyncpg.Record]", redis: Redis) -> None:
    drop = await make_drop(pool)
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a")
    await rebuild(pool, redis, drop, 1)
    drop = await drop_now(pool, drop.drop_no)
    left = {name for name in await redis.keys("*") if b":d" in name}
    assert left == {keys.state_key(0, drop.drop_no, 2).encode()}
    assert await published(redis, drop) == 2


async def test_the_new_epoch_is_above_whatever_redis_has_published(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    """Postgres was restored from an older copy: Redis is ahead of it."""
    drop = await make_drop(pool)
    await redis.hset(keys.shard_key(0), keys.epoch_field(drop.drop_no), "9")
    assert await rebuild(pool, redis, drop, 9) == 10
    assert await published(redis, await drop_now(pool, drop.drop_no)) == 10


async def test_a_reconciler_that_was_paused_before_publishing_is_refused(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool)
    await issue(pool, drop, 3)
    paused = await raise_epoch(pool, redis, drop, 0)
    seen_meanwhile = await drop_now(pool, drop.drop_no)
    assert await rebuild(pool, redis, seen_meanwhile, 0) == 3
    open_drop = await drop_now(pool, drop.drop_no)
    assert await grab(redis, open_drop, "late") == "G"
    with pytest.raises(Overtaken):
        await load_raised(pool, redis, paused)
    assert await published(redis, open_drop) == 3
    assert await counters(redis, open_drop) == (6, 1, 3, 10)
    assert await redis.exists(keys.holders_key(0, drop.drop_no, 2)) == 0


async def test_a_reconciler_that_was_paused_before_raising_is_overtaken(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool)
    await rebuild(pool, redis, drop, 0)
    with pytest.raises(Overtaken):
        await rebuild(pool, redis, drop, 0)
    assert (await drop_now(pool, drop.drop_no)).epoch == 2


async def test_of_many_reconcilers_at_once_one_rebuilds(pool: "Pool[asyncpg.Record]", redis: Redis) -> None:
    drop = await make_drop(pool)
    await issue(pool, drop, 4)
    done = await asyncio.gather(*(rebuild(pool, redis, drop, 0) for _ in range(6)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in done) == ["Overtaken"] * 5 + ["int"]
    drop = await drop_now(pool, drop.drop_no)
    assert await counters(redis, drop) == (6, 0, 4, 10)


async def test_grabs_are_fenced_from_the_raised_epoch_to_the_published_one(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool)
    await publish_new_drop(redis, drop)
    raised = await raise_epoch(pool, redis, drop, 1)
    assert await grab(redis, drop, "a") == "F"
    assert await grab(redis, raised.drop, "a") == "F"
    await load_raised(pool, redis, raised)
    assert await grab(redis, raised.drop, "a") == "G"


async def test_a_definition_that_changed_during_the_load_is_applied_after_it(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool)
    raised = await raise_epoch(pool, redis, drop, 0)
    await pool.execute("UPDATE drops SET quantity = 30, version = version + 1")
    await load_raised(pool, redis, raised)
    assert await counters(redis, raised.drop) == (30, 0, 0, 30)


async def test_a_restock_that_was_told_during_the_load_is_in_force_from_the_first_grab(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    """Else "sold out" could be told for good between the publication and the newer definition."""
    drop = await make_drop(pool, quantity=1)
    await issue(pool, drop, 1)
    raised = await raise_epoch(pool, redis, drop, 0)
    operator = Operator(pool, redis, drop.shard, "tests")
    await restock(operator, drop.drop_id, current_quantity=1, add=5)
    with pytest.raises(Overtaken):
        await load_raised(pool, redis, raised)
    again = await drop_now(pool, drop.drop_no)
    assert await grab(redis, again, "a") == "F"
    await rebuild(pool, redis, again, 0)
    assert await grab(redis, await drop_now(pool, drop.drop_no), "a") == "G"


async def test_a_postgres_that_contradicts_itself_leaves_the_drop_closed(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool)
    await publish_new_drop(redis, drop)
    await issue(pool, drop, 3)
    await pool.execute("DELETE FROM vouchers WHERE seq = 2")
    with pytest.raises(LoadIncomplete):
        await rebuild(pool, redis, drop, 1)
    assert await published(redis, drop) == -1
    assert await grab(redis, await drop_now(pool, drop.drop_no), "a") == "F"


async def test_running_out_of_memory_in_mid_load_leaves_the_drop_closed_until_the_next_try(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drop = await make_drop(pool, quantity=60_000)
    await issue(pool, drop, 50_000)
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", str(used + 2_000_000))
    try:
        with pytest.raises(OutOfMemoryError):
            await rebuild(pool, redis, drop, 0)
    finally:
        await redis.config_set("maxmemory", "0")
    drop = await drop_now(pool, drop.drop_no)
    assert await published(redis, drop) == 0
    await rebuild(pool, redis, drop, 0)
    assert await counters(redis, await drop_now(pool, drop.drop_no)) == (10_000, 0, 50_000, 60_000)
    assert await redis.exists(keys.holders_key(0, drop.drop_no, drop.epoch)) == 0
