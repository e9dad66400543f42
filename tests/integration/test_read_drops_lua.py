"""read_drops.lua: what Redis says of drops, each at one moment, however many there are."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from couponsvc import limits
from couponsvc.gate.loading import fence_drop, load_epoch, publish_new_drop
from couponsvc.reconcile.gate_reading import SCRIPT, Answer, ask, questions_about
from couponsvc.reconcile.snapshot import GateSide, StreamSide, gate_side, read_gate, read_stream
from couponsvc.values import keys
from tests.integration.scene import CLOSES_MS, OPENS_MS, any_drop, grab, rows_of

FRESH = b"10 1 %d %d 0 1" % (OPENS_MS, CLOSES_MS)


async def said(redis: Redis, *epochs: tuple[int, int]) -> Answer:
    (answer,) = await ask(redis, questions_about(0, epochs))
    return answer


async def test_entries_and_backlog_are_said_without_any_drop(redis: Redis) -> None:
    assert await said(redis) == Answer(0, 0, [])
    drop = any_drop()
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a", "b")
    assert await said(redis) == Answer(1, 2, [])
    assert await read_stream(redis, 0) == StreamSide(2, 1)


async def test_a_drop_is_said_with_its_epoch_its_holders_and_its_state(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    assert await said(redis, (7, 1)) == Answer(0, 0, [b"1 0 10 0 0 " + FRESH])
    await grab(redis, drop, "a", "b")
    assert await said(redis, (7, 1)) == Answer(1, 2, [b"1 2 8 2 0 " + FRESH])


async def test_what_was_never_there_is_said_as_zero_and_dashes(redis: Redis) -> None:
    assert await said(redis, (8, 1)) == Answer(0, 0, [b"0 0" + b" -" * len(keys.STATE_FIELDS)])


async def test_another_epoch_is_published_and_has_other_keys(redis: Redis) -> None:
    drop = any_drop(epoch=4)
    await load_epoch(redis, drop, 1, rows_of(["1:1:a", "n1 1 5 C1"]))
    answer = await said(redis, (7, 4), (7, 3))
    assert answer.texts == [b"4 1 9 0 1 " + FRESH, b"4 0" + b" -" * len(keys.STATE_FIELDS)]
    await fence_drop(redis, any_drop(epoch=5))
    assert (await said(redis, (7, 4))).texts[0].startswith(b"-4 1 9 ")


@pytest.mark.parametrize("place", range(len(keys.STATE_FIELDS)))
async def test_each_field_has_its_place_and_a_missing_one_is_never_zero(redis: Redis, place: int) -> None:
    values = {field: number for number, field in enumerate(keys.STATE_FIELDS, start=11)}
    await redis.hset(keys.state_key(0, 7, 1), mapping={field: str(value) for field, value in values.items()})
    (text,) = (await said(redis, (7, 1))).texts
    state = gate_side(text, 0).state
    assert state is not None
    assert list(state) == list(values.values())
    assert state._fields == keys.STATE_FIELDS
    await redis.hdel(keys.state_key(0, 7, 1), keys.STATE_FIELDS[place])
    (text,) = (await said(redis, (7, 1))).texts
    assert text.split(b" ")[2 + place] == b"-"
    assert gate_side(text, 0) == GateSide(0, None, 0, 0, text)


async def test_pending_grants_without_any_entry_are_stranded(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a", "b")
    assert (await read_gate(redis, [drop]))[0].stranded_count == 0
    await redis.delete(keys.grants_key(0))
    assert (await read_gate(redis, [drop]))[0].stranded_count == 2


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_drops_come_in_order_on_both_sides_of_what_one_script_reads(redis: Redis, more: int) -> None:
    count = limits.BATCH_DROPS_MAX_COUNT + more
    epochs = [(drop_no, 1) for drop_no in range(1, count + 1)]
    async with redis.pipeline(transaction=False) as pipeline:
        for drop_no, _ in epochs:
            pipeline.hset(keys.shard_key(0), keys.epoch_field(drop_no), str(drop_no))
        await pipeline.execute()
    answers = await ask(redis, questions_about(0, epochs))
    assert [len(answer.texts) for answer in answers] == [min(count, 128), 1][: 1 + (more > 0)]
    texts = [text for answer in answers for text in answer.texts]
    assert [int(text.split(b" ", 1)[0]) for text in texts] == [drop_no for drop_no, _ in epochs]


async def test_it_is_loaded_anew_where_the_server_forgot_it(redis: Redis) -> None:
    drop = any_drop()
    await publish_new_drop(redis, drop)
    before = await said(redis, (7, 1))
    await redis.script_flush()
    assert await said(redis, (7, 1)) == before


async def test_it_cannot_write(redis: Redis) -> None:
    writing = SCRIPT.source.replace("local told", "redis.call('SET', grants_key, '1') local told", 1)
    with pytest.raises(ResponseError, match="Write commands are not allowed"):
        await redis.eval(writing, 2, keys.shard_key(0), keys.grants_key(0))
