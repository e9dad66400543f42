"""Many drops at once: who is sound opens first, who was lost is loaded, and no drop pays for another."""

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from couponsvc import limits
from couponsvc.gate.loading import PublishResult
from couponsvc.reconcile import blessing, rebuild
from couponsvc.reconcile.blessing import bless_server
from couponsvc.reconcile.holders import compare_holders
from couponsvc.reconcile.identity import (
    WrongServer,
    read_blessing,
    read_identity,
    require_server,
)
from couponsvc.reconcile.rebuild import Lost, load_all_raised, raise_epochs
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.reconcile.snapshot import QUERIES, Pool, read_ledger
from couponsvc.settings import Settings
from couponsvc.support.kill_points import KillPointReached
from couponsvc.support.redis_client import open_redis
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.values import keys
from couponsvc.values.drop import Drop
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
from tests.integration.test_queries_prepare import ROWS, scans_of_vouchers


def die() -> None:
    raise KillPointReached("by order of the test")


async def lose(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop) -> None:
    """Take a drop's state away, and have the server checked anew."""
    await redis.delete(keys.state_key(0, drop.drop_no, drop.epoch))
    await pool.execute("UPDATE blessings SET run_id = 'another'")


@pytest.fixture
async def two(pool: "Pool[asyncpg.Record]", redis: Redis, settings: Settings) -> tuple[Drop, Drop]:
    """A sound drop, and one with vouchers whose state is lost on a server that is to be checked."""
    sound, lost = await make_drop(pool, "sound"), await make_drop(pool, "lost")
    reconciler = await Reconciler.open(settings)
    await reconciler.run_once()
    await issue(pool, lost, 3)
    await reconciler.close()
    await lose(pool, redis, lost)
    return sound, lost


async def test_sound_drops_are_open_and_lost_ones_closed_before_these_are_loaded(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    settings: Settings,
    two: tuple[Drop, Drop],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound, lost = two
    server = await read_identity(redis)
    with monkeypatch.context() as patch:
        patch.setattr(blessing, "_AFTER_BLESSING", die)
        with pytest.raises(KillPointReached):
            await bless_server(pool, redis, 0, server, await read_blessing(pool, 0))
    assert await read_blessing(pool, 0) == server
    assert await grab(redis, sound, "a") == "G"
    lost_now = await drop_now(pool, lost.drop_no)
    assert lost_now.epoch == 2  # so that no grant of its old epoch can be confirmed
    assert await published(redis, lost) == -1
    assert await grab(redis, lost, "a") == await grab(redis, lost_now, "a") == "F"

    reconciler = await Reconciler.open(settings)  # another one finds what the dead one left
    assert (await reconciler.run_once()).rebuilt == 1
    await reconciler.close()
    lost_now = await drop_now(pool, lost.drop_no)
    assert await counters(redis, lost_now) == (7, 0, 3, 10)
    assert await grab(redis, lost_now, "p-1", "a") == "LG"


async def test_nothing_is_blessed_before_every_lost_drop_is_closed(
    pool: "Pool[asyncpg.Record]", redis: Redis, two: tuple[Drop, Drop], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, before = await read_identity(redis), await read_blessing(pool, 0)
    for point in ("_BEFORE_RAISE", "_AFTER_RAISE", "_AFTER_FENCE"):
        with monkeypatch.context() as patch:
            patch.setattr(rebuild, point, die)
            with pytest.raises(KillPointReached):
                await bless_server(pool, redis, 0, server, before)
        assert await read_blessing(pool, 0) == before
    done = await bless_server(pool, redis, 0, server, before)
    assert (done.sound_count, done.rebuilt_count) == (1, 1)
    assert await counters(redis, await drop_now(pool, two[1].drop_no)) == (7, 0, 3, 10)


async def test_drops_of_every_size_are_loaded_together_each_with_its_own_holders(
    pool: "Pool[asyncpg.Record]", redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOAD_CHUNK_COUNT", 50)
    monkeypatch.setattr(rebuild, "GROUP_VOUCHERS_COUNT", 120)
    sizes = [0, 1, 49, 50, 51, 100, 149, 7, 0, 3]
    for place, size in enumerate(sizes):
        drop = await make_drop(pool, f"drop-{place}", quantity=200)
        if size:
            await issue(pool, drop, size)
    before = await read_ledger(pool, 0)
    raised = await raise_epochs(pool, redis, [Lost(side.drop, 0) for side in before])
    assert [side.drop.epoch for side in raised] == [2] * len(sizes)
    results = await load_all_raised(pool, redis, raised, 0.0)
    assert results == [PublishResult.PUBLISHED] * len(sizes)
    for side, size in zip(raised, sizes, strict=True):
        assert await counters(redis, side.drop) == (200 - size, 0, size, 200)
        assert await holders(redis, side.drop) == await expected_holders(pool, side.drop)
    drifts = await compare_holders(pool, redis, raised, at_rest=True)
    assert [tuple(drifts[side.drop.drop_no]) for side in raised] == [(size, 0, 0) for size in sizes]


async def test_a_comparison_counts_what_is_missing_or_different_of_each_drop(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    for name in "abc":
        await issue(pool, await make_drop(pool, f"drop-{name}"), 3)
    raised = await raise_epochs(pool, redis, [Lost(side.drop, 0) for side in await read_ledger(pool, 0)])
    await load_all_raised(pool, redis, raised, 0.0)
    names = [keys.holders_key(0, side.drop.drop_no, 2) for side in raised]
    await redis.hdel(names[0], "1:1:p-1", "1:1:p-2")
    await redis.hset(names[2], "1:1:p-3", "another 3 0 C")
    drifts = await compare_holders(pool, redis, raised, at_rest=True)
    assert [tuple(drifts[side.drop.drop_no]) for side in raised] == [(3, 2, 0), (3, 0, 0), (3, 0, 1)]


async def test_of_several_drops_those_that_somebody_else_raised_are_left_to_them(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drops = [await make_drop(pool, f"drop-{name}") for name in "abc"]
    await pool.execute("UPDATE drops SET epoch = 5 WHERE drop_no = $1", drops[1].drop_no)
    raised = await raise_epochs(pool, redis, [Lost(drop, 0) for drop in drops])
    assert [side.drop.drop_id for side in raised] == ["drop-a", "drop-c"]
    assert (await drop_now(pool, drops[1].drop_no)).epoch == 5


async def test_one_drop_that_contradicts_itself_does_not_keep_its_group_closed(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    drops = [await make_drop(pool, f"drop-{name}") for name in "abc"]
    for drop in drops:
        await issue(pool, drop, 4)
    await pool.execute("UPDATE drops SET issued = 3 WHERE drop_no = $1", drops[1].drop_no)  # of four
    raised = await raise_epochs(pool, redis, [Lost(drop, 0) for drop in drops])
    results = await load_all_raised(pool, redis, raised, 0.0)
    assert results == [PublishResult.PUBLISHED, PublishResult.INCOMPLETE, PublishResult.PUBLISHED]
    assert await published(redis, drops[1]) == 0
    assert await redis.exists(keys.holders_key(0, drops[1].drop_no, 2)) == 0


async def test_any_visible_character_survives_a_rebuild(pool: "Pool[asyncpg.Record]", redis: Redis) -> None:
    drop = await make_drop(pool, quantity=100)
    await issue(pool, drop, 94)
    await pool.execute(
        "UPDATE vouchers SET person_token = chr(32 + seq) || E'\\\\n' || chr(127 - seq),"
        " out_request_no = 'a-b|c*d@e.f:' || seq"
    )
    raised = await raise_epochs(pool, redis, [Lost(drop, 0)])
    assert await load_all_raised(pool, redis, raised, 0.0) == [PublishResult.PUBLISHED]
    assert await holders(redis, raised[0].drop) == await expected_holders(pool, raised[0].drop)


async def test_a_connection_that_leads_to_another_server_is_not_used(redis: Redis, redis_url: str) -> None:
    def opened(expected: ServerIdentity | None) -> Redis:
        async def recognize(line: AbstractConnection) -> None:
            await require_server(line, expected)

        return open_redis(redis_url, redis_connect_func=recognize)

    asked = await read_identity(redis)
    for expected in (None, asked):
        client = opened(expected)
        assert await client.ping()
        await client.aclose()
    client = opened(asked._replace(run_id="0" * 40))
    with pytest.raises(WrongServer):
        await client.ping()
    await client.aclose()


async def test_holders_are_read_by_the_numbers_of_their_drop_alone(pool: "Pool[asyncpg.Record]") -> None:
    """A scan of all vouchers for each portion would make a rebuild quadratic."""
    await pool.execute(ROWS)
    await pool.execute("ANALYZE vouchers")
    async with pool.acquire() as connection:
        for mode in ("force_custom_plan", "force_generic_plan"):  # a server switches by itself
            await connection.execute(f"SET plan_cache_mode = {mode}")
            statement = await connection.prepare(QUERIES["read_holders"])
            explained = await statement.explain([1, 2], [0, 500], [100, 600], 4_000)
            assert scans_of_vouchers(explained[0]["Plan"]) == ["vouchers_pkey"], (mode, explained)
