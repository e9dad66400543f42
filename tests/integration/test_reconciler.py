"""The reconciler: which server is it, does every drop agree, and what it does where not."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc import limits
from couponsvc.gate.definition import apply_definition
from couponsvc.ledger.drainer import Drainer
from couponsvc.reconcile import attending
from couponsvc.reconcile.attending import ReconcileCounts
from couponsvc.reconcile.blessing import ServerChanged, bless_server
from couponsvc.reconcile.identity import read_blessing, read_identity
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.reconcile.snapshot import Pool
from couponsvc.settings import Settings
from couponsvc.support.server_identity import NotMaster, ServerIdentity
from couponsvc.support.server_settings import UnsafeServer
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
from tests.servers import PostgresServer, RedisServer

T = TypeVar("T")


@pytest.fixture
async def reconciler(settings: Settings) -> AsyncIterator[Reconciler]:
    reconciler = await Reconciler.open(settings)
    yield reconciler
    await reconciler.close()


@pytest.fixture
async def drainer(settings: Settings) -> AsyncIterator[Drainer]:
    drainer = await Drainer.open(settings)
    yield drainer
    await drainer.close()


async def agrees(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop) -> bool:
    drop = await drop_now(pool, drop.drop_no)
    issued = await pool.fetchval("SELECT issued FROM drops WHERE drop_no = $1", drop.drop_no)
    return (
        await published(redis, drop) == drop.epoch
        and await counters(redis, drop) == (drop.quantity - issued, 0, issued, drop.quantity)
        and await holders(redis, drop) == await expected_holders(pool, drop)
    )


# --- blessing -------------------------------------------------------------------------------------


async def test_the_first_server_is_blessed_and_new_drops_open_under_their_first_epoch(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    drop = await make_drop(pool)
    assert await read_blessing(pool, 0) is None
    counts = await reconciler.run_once()
    assert counts.blessed
    assert await read_blessing(pool, 0) == await read_identity(redis)
    assert await drop_now(pool, drop.drop_no) == drop
    assert await counters(redis, drop) == (10, 0, 0, 10)
    assert await reconciler.run_once() == ReconcileCounts(looked_at=1)


async def test_a_wiped_server_is_rebuilt_before_it_is_blessed(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, redis_server: RedisServer
) -> None:
    drops = [await make_drop(pool, f"drop-{n}") for n in range(3)]
    await reconciler.run_once()
    await issue(pool, drops[0], 7)
    await restart(redis_server, redis, keep_data=False)
    assert (await again(reconciler.run_once)).blessed
    assert await read_blessing(pool, 0) == await read_identity(redis)
    for drop in drops:
        assert await agrees(pool, redis, drop)
        assert (await drop_now(pool, drop.drop_no)).epoch == 2


async def test_a_restart_with_its_data_intact_reopens_under_the_same_epoch(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    reconciler: Reconciler,
    drainer: Drainer,
    redis_server: RedisServer,
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a", "b")
    await drainer.run_once()
    before = await read_blessing(pool, 0)
    await restart(redis_server, redis, keep_data=True)
    assert (await again(reconciler.run_once)).blessed
    assert await read_blessing(pool, 0) != before
    assert (await drop_now(pool, drop.drop_no)).epoch == 1
    assert await agrees(pool, redis, drop)


async def test_grants_that_survived_a_restart_are_waited_for(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    reconciler: Reconciler,
    drainer: Drainer,
    redis_server: RedisServer,
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a", "b", "c")
    await restart(redis_server, redis, keep_data=True)
    blessed = asyncio.ensure_future(again(reconciler.run_once))
    await asyncio.sleep(0.2)
    assert not blessed.done()
    await again(drainer.run_once)
    assert (await blessed).blessed
    assert (await drop_now(pool, drop.drop_no)).epoch == 1
    assert await agrees(pool, redis, drop)
    assert await pool.fetchval("SELECT issued FROM drops") == 3


async def test_grants_that_nobody_commits_are_given_up_and_never_count_again(  # noqa: PLR0917 - fixtures
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    reconciler: Reconciler,
    drainer: Drainer,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "DRAIN_PATIENCE_MS", 100)
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a", "b", "c")
    await restart(redis_server, redis, keep_data=True)
    await again(reconciler.run_once)
    assert (await drop_now(pool, drop.drop_no)).epoch == 2
    await again(drainer.run_once)
    assert await pool.fetchval("SELECT issued FROM drops") == 0
    assert await agrees(pool, redis, drop)
    assert await redis.hget(keys.shard_key(0), keys.BACKLOG_FIELD) == b"0"


async def test_a_stale_copy_is_rebuilt_and_not_blessed_before(  # noqa: PLR0917 - fixtures
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    reconciler: Reconciler,
    drainer: Drainer,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a")
    await drainer.run_once()
    with keep_copy(redis_server, tmp_path) as restore:
        await grab(redis, drop, "b", "c")
        await drainer.run_once()
        restore()
    await again(redis.ping)
    assert await counters(redis, drop) == (9, 0, 1, 10)  # two units too many are in stock
    assert await read_blessing(pool, 0) != await read_identity(redis)
    assert (await again(reconciler.run_once)).blessed
    assert (await drop_now(pool, drop.drop_no)).epoch == 2
    assert await agrees(pool, redis, drop)


async def test_a_stale_copy_with_pending_grants_is_not_waited_for(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres has issued more than the copy can account for, whatever becomes of its grants."""
    monkeypatch.setattr(limits, "DRAIN_PATIENCE_MS", 3_600_000)
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a")
    await issue(pool, drop, 2)
    await pool.execute("UPDATE blessings SET run_id = 'another'")
    assert (await reconciler.run_once()).blessed
    assert (await drop_now(pool, drop.drop_no)).epoch == 2
    assert await agrees(pool, redis, drop)


async def test_a_replica_is_never_blessed(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    await make_drop(pool)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(NotMaster):
            await reconciler.run_once()
        assert await read_blessing(pool, 0) is None
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]


async def test_a_server_that_is_replaced_during_its_check_is_not_blessed(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    with pytest.raises(ServerChanged):
        await bless_server(pool, redis, 0, ServerIdentity("0" * 40, "1" * 40), None)
    assert await read_blessing(pool, 0) is None


async def test_a_check_that_another_one_overtook_does_not_bless(
    pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    other = ServerIdentity("0" * 40, "1" * 40)
    await pool.execute("INSERT INTO blessings (shard, run_id, replication_id) VALUES (0, $1, $2)", *other)
    for previous in (None, ServerIdentity("2" * 40, "3" * 40)):
        with pytest.raises(ServerChanged):
            await bless_server(pool, redis, 0, await read_identity(redis), previous)
        assert await read_blessing(pool, 0) == other


async def test_a_server_that_may_evict_stock_is_not_blessed(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(UnsafeServer, match="maxmemory-policy"):
            await reconciler.run_once()
        assert await read_blessing(pool, 0) is None
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert (await reconciler.run_once()).blessed


async def test_one_broken_drop_stays_closed_and_does_not_hold_up_the_others(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    broken, sound = await make_drop(pool, "broken"), await make_drop(pool, "sound")
    await issue(pool, broken, 3)
    await pool.execute("DELETE FROM vouchers WHERE seq = 2")
    await reconciler.run_once()
    assert await agrees(pool, redis, sound)
    assert await published(redis, broken) == 0
    assert await read_blessing(pool, 0) == await read_identity(redis)


# --- the continuous look --------------------------------------------------------------------------


async def test_a_drop_that_was_made_meanwhile_is_loaded(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    await reconciler.run_once()
    drop = await make_drop(pool)
    assert await reconciler.run_once() == ReconcileCounts(looked_at=1, loaded=1)
    assert await agrees(pool, redis, drop)
    assert (await drop_now(pool, drop.drop_no)).epoch == 1


async def test_a_definition_that_redis_missed_is_applied(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a")
    await pool.execute("UPDATE drops SET quantity = 50, status = 1, version = version + 1")
    assert (await reconciler.run_once()).defined == 1
    assert await counters(redis, drop) == (49, 1, 0, 50)
    assert await grab(redis, drop, "b") == "Z"


async def test_a_running_server_that_lost_everything_is_rebuilt(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    drop = await make_drop(pool)
    fresh = await make_drop(pool, "fresh")
    await reconciler.run_once()
    await issue(pool, drop, 2)
    await redis.flushall()
    assert (await reconciler.run_once()).rebuilt == 2
    for lost in (drop, fresh):
        assert await agrees(pool, redis, lost)
        assert (await drop_now(pool, lost.drop_no)).epoch == 2


Plant = Callable[[Redis, Drop], Awaitable[object]]


def _state(drop: Drop) -> str:
    return keys.state_key(0, drop.drop_no, drop.epoch)


def _holders(drop: Drop) -> str:
    return keys.holders_key(0, drop.drop_no, drop.epoch)


PLANTED: dict[str, Plant] = {
    "one too many available": lambda redis, drop: redis.hincrby(_state(drop), "available", 1),
    "one too few available": lambda redis, drop: redis.hincrby(_state(drop), "available", -1),
    "issued and available shifted": lambda redis, drop: redis.hset(
        _state(drop), mapping={"available": 8, "issued": 2}
    ),
    "a holder missing": lambda redis, drop: redis.hdel(_holders(drop), "1:1:b"),
    "a holder too many": lambda redis, drop: redis.hset(_holders(drop), "1:1:ghost", "n 9 9 C"),
    "a holder exchanged": lambda redis, drop: redis.eval(
        "redis.call('HDEL', KEYS[1], '1:1:b'); redis.call('HSET', KEYS[1], '1:1:ghost', 'n 9 9 C')",
        1,
        _holders(drop),
    ),
    "a wrong note": lambda redis, drop: redis.hset(_holders(drop), "1:1:b", "n 2 9 C"),
    "a wrong limit": lambda redis, drop: redis.hset(_state(drop), "limit", 2),
    "a wrong quantity": lambda redis, drop: redis.hset(
        _state(drop), mapping={"quantity": 11, "available": 8}
    ),
    "state lost": lambda redis, drop: redis.delete(_state(drop)),
    "a field lost": lambda redis, drop: redis.hdel(_state(drop), "available"),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_planted_drift_is_found_and_mended_by_a_look_and_before_a_blessing(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, drainer: Drainer, name: str
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a", "b", "c")
    await drainer.run_once()
    assert await agrees(pool, redis, drop)

    await PLANTED[name](redis, drop)
    counts = await reconciler.run_once()
    assert (counts.drifting, counts.rebuilt) == (1, 1)
    assert await agrees(pool, redis, drop)
    assert await reconciler.run_once() == ReconcileCounts(looked_at=1)

    drop = await drop_now(pool, drop.drop_no)
    await PLANTED[name](redis, drop)
    await pool.execute("UPDATE blessings SET run_id = 'another'")
    done = await bless_server(pool, redis, 0, await read_identity(redis), await read_blessing(pool, 0))
    assert done.rebuilt_count == 1
    assert await agrees(pool, redis, drop)


async def test_drift_of_a_drop_in_motion_needs_three_looks(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a")  # stays pending
    await redis.hincrby(_state(drop), "available", 1)
    assert [(await reconciler.run_once()).drifting for _ in range(3)] == [0, 0, 1]
    assert await agrees(pool, redis, drop)


async def test_vouchers_that_redis_cannot_account_for_are_drift_in_motion_too(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a")
    await issue(pool, drop, 2)
    assert [(await reconciler.run_once()).drifting for _ in range(3)] == [0, 0, 1]
    assert await agrees(pool, redis, drop)


async def test_pending_grants_are_not_drift(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a", "b")
    for _ in range(4):
        assert await reconciler.run_once() == ReconcileCounts(looked_at=1)


async def test_grants_whose_entry_is_gone_come_back_to_stock(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler
) -> None:
    """As after a dead letter: taken off the stream, and nobody could read what it granted."""
    drop = await make_drop(pool)
    await reconciler.run_once()
    await grab(redis, drop, "a", "b")
    await redis.delete(keys.grants_key(0))
    assert [(await reconciler.run_once()).drifting for _ in range(3)] == [0, 0, 1]
    assert await agrees(pool, redis, drop)
    assert await redis.hget(keys.shard_key(0), keys.BACKLOG_FIELD) == b"0"


async def test_units_taken_from_stock_before_postgres_commits_are_not_drift_for_a_while(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = await make_drop(pool)
    await reconciler.run_once()
    ahead = Drop(**{name: getattr(drop, name) for name in Drop.__slots__} | {"version": 2, "quantity": 4})
    await apply_definition(redis, ahead)
    for _ in range(4):
        assert await reconciler.run_once() == ReconcileCounts(looked_at=1)
    monkeypatch.setattr(attending, "AHEAD_FOR_S", 0.0)
    assert (await reconciler.run_once()).rebuilt == 1
    assert await agrees(pool, redis, drop)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM outbox WHERE first_seq = 3",
        "UPDATE outbox SET last_seq = 3 WHERE first_seq = 1",
        "UPDATE outbox SET last_seq = 1 WHERE first_seq = 1",
    ],
)
async def test_events_that_do_not_tile_the_vouchers_are_reported_and_not_rebuilt(
    pool: "Pool[asyncpg.Record]", reconciler: Reconciler, damage: str
) -> None:
    drop = await make_drop(pool)
    for _ in range(3):
        await issue(pool, drop, 2)
    await pool.execute(damage)
    await reconciler.run_once()
    epoch = (await drop_now(pool, drop.drop_no)).epoch
    assert (await reconciler.run_once()).drifting == 1
    assert (await drop_now(pool, drop.drop_no)).epoch == epoch


async def test_a_grab_against_a_soundly_looking_drop_is_never_disturbed_by_looks(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, drainer: Drainer
) -> None:
    """A whole rush with looks in between: no false alarm, and agreement at the end."""
    drop = await make_drop(pool, quantity=400)
    await reconciler.run_once()
    stop = asyncio.Event()
    draining = asyncio.create_task(drainer.run(stop))
    drifting = 0
    for turn in range(40):
        codes = await grab(redis, drop, *(f"p{turn}-{n}" for n in range(15)))
        assert set(codes) <= set("GSX")
        drifting += (await reconciler.run_once()).drifting
    stop.set()
    await draining
    assert drifting == 0
    assert await agrees(pool, redis, drop)
    assert (await drop_now(pool, drop.drop_no)).epoch == 1


# --- several reconcilers, servers that are away ---------------------------------------------------


async def test_a_second_reconciler_stands_by_and_takes_over(
    pool: "Pool[asyncpg.Record]", settings: Settings, reconciler: Reconciler
) -> None:
    await make_drop(pool)
    assert not (await reconciler.run_once()).standby
    second = await Reconciler.open(settings)
    try:
        assert (await second.run_once()).standby
        await reconciler.close()
        assert not (await second.run_once()).standby
    finally:
        await second.close()


async def test_it_watches_until_it_is_stopped_and_rides_out_a_restart(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, redis_server: RedisServer
) -> None:
    drop = await make_drop(pool)
    stop = asyncio.Event()
    running = asyncio.create_task(reconciler.run(stop))
    try:
        await until(lambda: is_blessed(pool, redis))
        redis_server.kill()
        await asyncio.sleep(0.3)
        await restart(redis_server, redis, keep_data=False)
        await until(lambda: is_blessed(pool, redis))
        await until(lambda: agrees(pool, redis, drop))
        made = await make_drop(pool, "made-later")
        await redis.publish(keys.control_channel(0), str(made.drop_no))
        await until(lambda: agrees_when_loaded(pool, redis, made))
    finally:
        stop.set()
        await running


@pytest.mark.slow
async def test_it_leads_again_after_postgres_was_restarted(
    pool: "Pool[asyncpg.Record]", redis: Redis, reconciler: Reconciler, postgres_server: PostgresServer
) -> None:
    drop = await make_drop(pool)
    stop = asyncio.Event()
    running = asyncio.create_task(reconciler.run(stop))
    try:
        await until(lambda: is_blessed(pool, redis))
        await asyncio.to_thread(postgres_server.restart)
        await until(lambda: is_blessed(pool, redis))
        await redis.hincrby(keys.state_key(0, drop.drop_no, 1), "available", 1)
        await until(lambda: agrees(pool, redis, drop))
    finally:
        stop.set()
        await running


async def agrees_when_loaded(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop) -> bool:
    return await published(redis, drop) == drop.epoch and await agrees(pool, redis, drop)


async def is_blessed(pool: "Pool[asyncpg.Record]", redis: Redis) -> bool:
    return await read_blessing(pool, 0) == await read_identity(redis)


async def restart(server: RedisServer, redis: Redis, *, keep_data: bool) -> None:
    server.restart(keep_data=keep_data)
    await again(redis.ping)


async def again(attempt: Callable[[], Awaitable[T]]) -> T:
    """Until the connections to the server that was killed have been noticed as lost."""
    for _ in range(20):
        try:
            return await attempt()
        except (RedisError, OSError):
            await asyncio.sleep(0.02)
    return await attempt()


async def until(is_so: Callable[[], Awaitable[bool]], patience_s: float = 15.0) -> None:
    """Servers may be away meanwhile."""
    async with asyncio.timeout(patience_s):
        while True:
            with contextlib.suppress(RedisError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if await is_so():
                    return
            await asyncio.sleep(0.02)


class keep_copy:  # noqa: N801 - used as a context manager
    """Copies the data of a server now; calling what it yields puts the copy back, as a restore does."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self._server = server
        self._kept = [(path, directory / path.name) for path in server.data_paths()]

    def __enter__(self) -> Callable[[], None]:
        for path, copy in self._kept:
            shutil.copytree(path, copy)
        return self._restore

    def __exit__(self, *_: object) -> None:
        for _path, copy in self._kept:
            shutil.rmtree(copy, ignore_errors=True)

    def _restore(self) -> None:
        self._server.kill()
        for path, copy in self._kept:
            owner = path.stat()
            shutil.rmtree(path)
            shutil.copytree(copy, path)
            for copied in (path, *path.iterdir()):
                shutil.chown(copied, owner.st_uid, owner.st_gid)
        self._server.ensure_running()
