"""The glance: settled drops are left alone, and whatever moves of one brings it back to be looked at."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.ledger.drainer import Drainer
from couponsvc.reconcile import glancing, proving
from couponsvc.reconcile.attending import Attendant, ReconcileCounts
from couponsvc.reconcile.glancing import Glancer
from couponsvc.reconcile.snapshot import Pool
from couponsvc.settings import Settings
from couponsvc.values import keys
from couponsvc.values.drop import Drop
from tests.integration.scene import drop_now, grab, issue, make_drop

FIRST_DROP_NO = 1_000


@pytest.fixture(autouse=True)
async def no_turn(pool: "Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch) -> None:
    """No drop has its turn within a test."""
    monkeypatch.setattr(glancing, "TURNS_COUNT", 2 * FIRST_DROP_NO)
    await pool.execute(f"ALTER TABLE drops ALTER COLUMN drop_no RESTART WITH {FIRST_DROP_NO}")


@pytest.fixture
async def drainer(settings: Settings) -> AsyncIterator[Drainer]:
    drainer = await Drainer.open(settings)
    yield drainer
    await drainer.close()


async def settled(pool: "Pool[asyncpg.Record]", redis: Redis, count: int = 1) -> tuple[Glancer, list[Drop]]:
    """Drops with a look each that found nothing, and who remembers that."""
    drops = [await make_drop(pool, f"drop-{n}") for n in range(count)]
    await Attendant(pool, redis, 0).look_at_all(ReconcileCounts())  # loads them
    glancer = Glancer(pool, redis, 0)
    for look in (await glancer.glance()).looks:
        assert look.at_rest
        glancer.settle(look)
    return glancer, drops


async def looked_at(glancer: Glancer) -> list[int]:
    return [look.ledger.drop.drop_no for look in (await glancer.glance()).looks]


async def test_settled_drops_are_not_looked_at_again(pool: "Pool[asyncpg.Record]", redis: Redis) -> None:
    glancer, drops = await settled(pool, redis, 3)
    for _ in range(3):
        glance = await glancer.glance()
        assert (glance.drop_count, glance.looks) == (len(drops), [])


MOVES_OF_REDIS = {
    **{
        f"field {field}": f"redis.call('HINCRBY', KEYS[1], '{field}', 1)" for field in keys.STATE_FIELDS
    },
    "state lost": "redis.call('DEL', KEYS[1])",
    "a holder": "redis.call('HSET', KEYS[2], '1:1:ghost', 'n')",
    "fenced": "redis.call('HSET', KEYS[3], ARGV[1], '-1')",
    "unpublished": "redis.call('HDEL', KEYS[3], ARGV[1])",
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES_OF_REDIS)
async def test_whatever_moves_in_redis_is_seen(pool: "Pool[asyncpg.Record]", redis: Redis, move: str) -> None:
    glancer, drops = await settled(pool, redis, 2)
    no = drops[1].drop_no
    names = [keys.state_key(0, no, 1), keys.holders_key(0, no, 1), keys.shard_key(0)]
    await redis.eval(MOVES_OF_REDIS[move], 3, *names, keys.epoch_field(no))
    assert await looked_at(glancer) == [no]
    assert await looked_at(glancer) == [no]  # until somebody says that it is settled


@pytest.mark.parametrize("move", ["issued = 1", "version = version + 1", "epoch = epoch + 1"])
async def test_whatever_moves_in_postgres_is_seen(
    pool: "Pool[asyncpg.Record]", redis: Redis, move: str
) -> None:
    glancer, drops = await settled(pool, redis, 2)
    await pool.execute(f"UPDATE drops SET {move} WHERE drop_no = {drops[0].drop_no}")
    (look,) = (await glancer.glance()).looks
    assert look.ledger.drop == await drop_now(pool, drops[0].drop_no)
    assert not look.epoch_moved
    assert look.judge() or look.behind


async def test_a_drop_that_is_made_meanwhile_is_seen(pool: "Pool[asyncpg.Record]", redis: Redis) -> None:
    glancer, _ = await settled(pool, redis, 2)
    made = await make_drop(pool, "made-later")
    assert await looked_at(glancer) == [made.drop_no]


async def test_each_drop_has_its_turn_although_nothing_of_it_moved(
    pool: "Pool[asyncpg.Record]", redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    glancer, drops = await settled(pool, redis, 5)
    monkeypatch.setattr(glancing, "TURNS_COUNT", 3)
    seen = []
    for _ in range(3):
        looks = (await glancer.glance()).looks
        for look in looks:
            glancer.settle(look)
        seen += [look.ledger.drop for look in looks]
        assert 1 <= len(looks) <= 2
    assert sorted(seen, key=lambda drop: drop.drop_no) == drops


async def test_a_rule_that_was_changed_by_hand_is_found_at_the_turn(
    pool: "Pool[asyncpg.Record]", redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glancing, "TURNS_COUNT", 4)
    await make_drop(pool)
    attendant = Attendant(pool, redis, 0)
    for _ in range(2):
        await attendant.look_at_all(ReconcileCounts())
    await pool.execute("UPDATE drops SET per_person_limit = 2")  # and no version
    counts = ReconcileCounts()
    for _ in range(4):
        await attendant.look_at_all(counts)
    assert counts.rebuilt == 1


async def test_a_drop_is_settled_once_it_rests_and_everything_is_proven(
    pool: "Pool[asyncpg.Record]", redis: Redis, drainer: Drainer
) -> None:
    drop = await make_drop(pool)
    attendant = Attendant(pool, redis, 0)
    glancer = attendant._glancer  # noqa: SLF001 - there is no other way to see that nothing was done
    await attendant.look_at_all(ReconcileCounts())
    await grab(redis, drop, "a", "b")
    for _ in range(2):
        await attendant.look_at_all(ReconcileCounts())
    assert drop.drop_no not in glancer._settled  # noqa: SLF001 - in motion
    await drainer.run_once()
    await attendant.look_at_all(ReconcileCounts())
    assert await looked_at(glancer) == []
    await redis.hset(keys.holders_key(0, drop.drop_no, 1), "1:1:ghost", "n 9 9 C")
    counts = ReconcileCounts()
    await attendant.look_at_all(counts)
    assert counts.rebuilt == 1


@pytest.mark.parametrize("portion", [1, 4, 1000])
async def test_drops_are_proven_in_whatever_portions(
    pool: "Pool[asyncpg.Record]", redis: Redis, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    """One of five has a gap in its numbers, another one an event that is missing."""
    monkeypatch.setattr(proving, "STATEMENT_VOUCHERS_COUNT", portion)
    drops = [await make_drop(pool, f"drop-{n}") for n in range(5)]
    attendant = Attendant(pool, redis, 0)
    await attendant.look_at_all(ReconcileCounts())
    for drop in drops:
        await issue(pool, drop, 3)
    await attendant.look_at_all(ReconcileCounts())  # Redis knows nothing of them: rebuilt
    await pool.execute("DELETE FROM outbox WHERE drop_no = $1", drops[3].drop_no)
    await pool.execute("UPDATE vouchers SET seq = 4 WHERE drop_no = $1 AND seq = 3", drops[1].drop_no)
    counts = ReconcileCounts()
    await attendant.look_at_all(counts)
    assert counts.drifting == 2
