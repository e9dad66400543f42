"""define_drop.lua: every answer, both sides of each comparison."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from couponsvc.gate.definition import DefinitionResult, apply_definition
from couponsvc.gate.loading import LoadRefused, load_epoch, publish_new_drop
from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from couponsvc.values.drop import DropStatus
from tests.integration.scene import any_drop, counters, grab, rows_of

A, Y, F, C = (
    DefinitionResult.APPLIED,
    DefinitionResult.ALREADY,
    DefinitionResult.FENCED,
    DefinitionResult.CONFLICT,
)


async def dump(redis: Redis) -> dict[bytes, Any]:
    names = [name for name in await redis.keys("*") if isinstance(name, bytes)]
    return {name: await redis.dump(name) for name in names}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2, "quantity": 11}, A),
        ({"version": 1, "quantity": 11}, Y),  # the version that stands
        ({"version": 0}, Y),
        ({"version": 2, "epoch": 2}, F),  # not the published one
        ({"version": 2, "drop_no": 8}, F),  # never loaded
        ({"version": 1, "epoch": 2}, F),  # fenced goes before already
        ({"version": 2, "quantity": 3}, A),  # what was granted, exactly
        ({"version": 2, "quantity": 2}, C),  # one fewer
    ],
)
async def test_each_answer_and_nothing_changes_unless_applied(
    redis: Redis, changes: dict[str, int], expected: DefinitionResult
) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    assert await grab(redis, drop, "a", "b", "c") == "GGG"
    before = await dump(redis)
    assert await apply_definition(redis, any_drop(**changes), committed=False) is expected
    assert (await dump(redis) != before) is (expected is A)


async def test_what_is_told_while_a_drop_is_closed_is_noted_by_its_newest_version(redis: Redis) -> None:
    for version, noted in ((3, b"3"), (2, b"3"), (5, b"5")):
        assert await apply_definition(redis, any_drop(version=version)) is F
        assert await redis.hgetall(keys.shard_key(0)) == {b"v7": noted}
    with pytest.raises(LoadRefused):
        await load_epoch(redis, any_drop(epoch=1, version=4), 0, rows_of())
    assert await redis.hgetall(keys.shard_key(0)) == {b"v7": b"5"}
    await load_epoch(redis, any_drop(epoch=1, version=5), 0, rows_of())
    assert await redis.hgetall(keys.shard_key(0)) == {b"e7": b"1"}


async def test_a_lower_quantity_that_may_be_rolled_back_keeps_no_drop_closed(redis: Redis) -> None:
    assert await apply_definition(redis, any_drop(version=9), committed=False) is F
    assert await publish_new_drop(redis, any_drop(version=8))


async def test_an_applied_definition_is_the_whole_definition(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a")
    new = any_drop(
        version=5,
        quantity=25,
        per_person_limit=2,
        opens_ms=1,
        closes_ms=4_102_444_800_000,
        status=DropStatus.PAUSED,
    )
    assert await apply_definition(redis, new) is A
    assert await redis.hgetall(keys.state_key(0, 7, 1)) == {
        b"available": b"24",
        b"pending": b"1",
        b"issued": b"0",
        b"quantity": b"25",
        b"limit": b"2",
        b"opens_ms": b"1",
        b"closes_ms": b"4102444800000",
        b"status": b"1",
        b"version": b"5",
    }


async def test_a_paused_drop_pauses_at_the_gate_and_resumes(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    await apply_definition(redis, replace(drop, version=2, status=DropStatus.PAUSED))
    assert await grab(redis, drop, "a") == "Z"
    await apply_definition(redis, replace(drop, version=3, status=DropStatus.ACTIVE))
    assert await grab(redis, drop, "a") == "G"


@pytest.mark.parametrize("missing", ["available", "quantity", "version"])
async def test_a_missing_field_is_not_loaded_rather_than_zero(redis: Redis, missing: str) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    await redis.hdel(keys.state_key(0, 7, 1), missing)
    assert await apply_definition(redis, replace(drop, version=2)) is F


async def test_no_key_is_made_where_nothing_is_loaded(redis: Redis) -> None:
    assert await apply_definition(redis, any_drop(version=9), committed=False) is F
    assert await redis.dbsize() == 0


async def test_processes_hear_of_a_change_and_only_of_a_change(redis: Redis, redis_url: str) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    listener = open_redis(redis_url)
    async with listener.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(keys.control_channel(0))
        await subscription.get_message(timeout=1)
        await apply_definition(redis, replace(drop, version=1, quantity=20))
        await apply_definition(redis, replace(drop, version=2, quantity=30))
        message = await subscription.get_message(timeout=2)
        assert message is not None
        assert message["data"] == b"7"
        assert await subscription.get_message(timeout=0.05) is None
    await listener.aclose()


async def test_restocking_while_persons_grab_loses_and_invents_nothing(redis: Redis) -> None:
    drop = any_drop(quantity=1)
    await publish_new_drop(redis, drop)

    async def restock() -> None:
        for version in range(2, 42):
            await apply_definition(redis, replace(drop, version=version, quantity=version))

    async def crowd() -> int:
        codes = [await grab(redis, drop, *(f"p{turn}-{i}" for i in range(3))) for turn in range(60)]
        return "".join(codes).count("G")

    _, granted = await asyncio.gather(restock(), crowd())
    assert await counters(redis, drop) == (41 - granted, granted, 0, 41)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), max_size=12))
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_definitions_in_any_order_agree_with_a_plain_model(
    redis: Redis, definitions: list[tuple[int, int]]
) -> None:
    await redis.flushall()
    drop = any_drop(quantity=5)
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a", "b")
    version, quantity = 1, 5
    for new_version, new_quantity in definitions:
        if new_version <= version:
            expected = Y
        elif new_quantity < 2:
            expected = C
        else:
            expected, version, quantity = A, new_version, new_quantity
        assert (
            await apply_definition(redis, replace(drop, version=new_version, quantity=new_quantity))
            is expected
        )
        assert await counters(redis, drop) == (quantity - 2, 2, 0, quantity)
