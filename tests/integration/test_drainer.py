"""The drainer on a real stream and a real ledger: what it settles, and what it survives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.ledger.commit import Committer
from couponsvc.ledger.drainer import DrainCounts, Drainer
from couponsvc.ledger.inbox import GONE_IDLE_MS, in_commits
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.settings import Settings
from couponsvc.values import keys, wire
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab
from couponsvc.values.outcome import Outcome, Verdict
from tests.integration.outbox_scene import admit, number_all, prepare
from tests.ledgers import SHARD, Scene, entry, grant, listening
from tests.servers import PostgresServer, RedisServer

GRANTS = keys.grants_key(SHARD)


@pytest.fixture
async def scene(settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> Scene:
    quick = settings.model_copy(update={"take_over_idle_ms": 100})
    return Scene(quick, pool, redis)


@asynccontextmanager
async def opened(scene: Scene) -> AsyncIterator[Drainer]:
    drainer = await Drainer.open(scene.settings)
    try:
        yield drainer
    finally:
        await drainer.close()


@asynccontextmanager
async def running(scene: Scene, count: int = 1) -> AsyncIterator[None]:
    """Drainers as processes run them."""
    stop = asyncio.Event()
    drainers = [await Drainer.open(scene.settings) for _ in range(count)]
    tasks = [asyncio.create_task(drainer.run(stop)) for drainer in drainers]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        for drainer in drainers:
            await drainer.close()


def crowd(drop: Drop, count: int, prefix: str = "p") -> list[Grab]:
    return [Grab(drop.drop_no, f"1:{prefix}{i}", f"{prefix}-n{i}", "app", "370200") for i in range(count)]


async def wait_until(ready: Callable[[], Any], what: str, within_s: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while not await ready():
        assert asyncio.get_running_loop().time() < deadline, f"still not so: {what}"
        await asyncio.sleep(0.02)


async def drained(scene: Scene) -> bool:
    return await scene.stream_length() == 0 and await scene.backlog() == 0


async def leave_lying(scene: Scene, consumer: str = "the-dead") -> list[wire.Entry]:
    """Read everything as a drainer that dies right after."""
    if not await scene.redis.xinfo_groups(GRANTS):
        await scene.redis.xgroup_create(GRANTS, keys.GROUP, id="0")
    reply: Any = await scene.redis.xreadgroup(keys.GROUP, consumer, {GRANTS: ">"}, count=1000)
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    if entries and isinstance(entries[0], list):
        entries = entries[0]
    return [wire.decode_entry(entry_id, fields) for entry_id, fields in entries]


async def test_grants_become_vouchers_with_events_and_confirmations(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=10)
    async with opened(scene) as drainer, listening(scene.redis) as heard:
        assert await scene.grab(*crowd(drop, 12)) == [Outcome.GRANTED] * 10 + [Outcome.SOLD_OUT_PENDING] * 2
        counts = await drainer.run_once()
        await wait_until(lambda: _is(bool(heard)), "a confirmation came")
    assert counts == DrainCounts(1, 10, {Verdict.COMMITTED: 10}, 0, 1)
    assert counts.committed == 10
    assert [(c.place, c.verdict, c.seq) for c in heard[1]] == [
        (i, Verdict.COMMITTED, i + 1) for i in range(10)
    ]
    await scene.check_drained(drop)
    assert await scene.grab(*crowd(drop, 1)) == [Outcome.REPEATED]
    assert await scene.grab(*crowd(drop, 1, "late")) == [Outcome.SOLD_OUT]


async def _is(value: bool) -> bool:  # noqa: FBT001 - lifts a value into a predicate
    return value


async def test_an_empty_stream_is_settled_at_once_with_nothing(scene: Scene) -> None:
    async with opened(scene) as drainer:
        assert await drainer.run_once() == DrainCounts()


async def test_entries_are_merged_into_one_transaction(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=500)
    for batch in range(40):
        await scene.grab(*crowd(drop, 5, f"b{batch}-"))
    async with opened(scene) as drainer:
        counts = await drainer.run_once()
    assert (counts.entries, counts.committed) == (40, 200)
    assert await scene.pool.fetchval("SELECT count(*) FROM outbox") == 1
    await scene.check_drained(drop)


def test_a_transaction_takes_a_bounded_number_of_grants() -> None:
    entries = [entry(f"{i}-1", [(1, 1)], [grant()] * 512) for i in range(20)]
    batches = list(in_commits(entries))
    assert [e for batch in batches for e in batch] == entries
    sizes = [sum(len(e.grants) for e in batch) for batch in batches]
    assert max(sizes) <= limits.DRAIN_GRANTS_MAX_COUNT
    assert len(sizes) == 3


async def test_a_backlog_larger_than_one_transaction_is_drained_in_order(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=6_000)
    for batch in range(12):
        await scene.grab(*crowd(drop, 500, f"b{batch}-"))
    async with opened(scene) as drainer:
        total = 0
        while total < 6_000:
            total += (await drainer.run_once()).committed
    firsts = await scene.pool.fetch("SELECT person_token FROM vouchers WHERE seq % 500 = 1 ORDER BY seq")
    assert [row["person_token"] for row in firsts] == [f"b{batch}-0" for batch in range(12)]
    await scene.check_drained(drop)


async def test_each_verdict_is_told_and_noted(scene: Scene) -> None:
    """Redis has lost what Postgres remembers: the ledger has the last word, and Redis learns it."""
    drop = await scene.add_drop(quantity=6)
    async with opened(scene) as drainer, listening(scene.redis) as heard:
        await scene.grab(*crowd(drop, 2))
        await drainer.run_once()
        names = [keys.state_key(SHARD, drop.drop_no, 1), keys.holders_key(SHARD, drop.drop_no, 1)]
        await scene.redis.hset(names[0], mapping={"available": 6, "issued": 0})
        await scene.redis.delete(names[1])
        lost = [
            Grab(drop.drop_no, "1:p0", "p-n0", "", ""),  # the same grab again
            Grab(drop.drop_no, "1:p1", "other", "", ""),  # held under p-n1
            Grab(drop.drop_no, "1:p2", "p-n1", "", ""),  # p1's number
            *crowd(drop, 3, "new"),
        ]
        assert await scene.grab(*lost) == [Outcome.GRANTED] * 6
        counts = await drainer.run_once()
        await wait_until(lambda: _is(2 in heard), "the second batch was confirmed")
    assert counts.verdicts == {Verdict.COMMITTED: 4, Verdict.HELD: 1, Verdict.MISMATCH: 1}
    assert [c.seq for c in sorted(heard[2])] == [1, 2, 0, 3, 4, 5]
    assert (await scene.holders(drop))["1:1:p1"].startswith("p-n1 2 ")
    await scene.check_drained(drop)


async def test_what_postgres_has_no_room_for_never_goes_back_to_stock(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=3)
    await scene.redis.hset(keys.state_key(SHARD, drop.drop_no, 1), "available", 5)
    async with opened(scene) as drainer:
        await scene.grab(*crowd(drop, 5))
        counts = await drainer.run_once()
    assert counts.verdicts == {Verdict.COMMITTED: 3, Verdict.EXCEEDED: 2}
    state = await scene.state(drop)
    assert (state["available"], state["pending"], state["issued"]) == (0, 0, 3)
    assert len(await scene.holders(drop)) == 3
    await scene.check_ledger()


async def test_grants_of_a_closed_epoch_are_stale_and_change_no_stock(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(*crowd(drop, 3))
    await scene.pool.execute("UPDATE drops SET epoch = 2")
    await scene.redis.hset(keys.shard_key(SHARD), keys.epoch_field(drop.drop_no), 2)
    async with opened(scene) as drainer:
        counts = await drainer.run_once()
    assert counts.verdicts == {Verdict.STALE: 3}
    assert await drained(scene)
    assert (await scene.state(drop, 1))["pending"] == 3
    assert await scene.pool.fetchval("SELECT count(*) FROM vouchers") == 0


async def test_a_drainer_that_died_before_the_commit_is_taken_over(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(*crowd(drop, 4))
    assert len(await leave_lying(scene)) == 1
    await asyncio.sleep(0.15)
    async with opened(scene) as drainer:
        assert (await drainer.run_once()).committed == 4
    await scene.check_drained(drop)


async def test_a_drainer_that_died_between_commit_and_acknowledgement_is_taken_over(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(*crowd(drop, 4))
    entries = await leave_lying(scene)
    committer = Committer(scene.pool, scene.unseal, 0)
    (settled,) = await committer.commit(entries)
    await committer.close()
    await asyncio.sleep(0.15)
    async with opened(scene) as drainer, listening(scene.redis) as heard:
        assert (await drainer.run_once()).committed == 4
        await wait_until(lambda: _is(bool(heard)), "the waiter was told")
    assert heard[1] == settled.parts[0].confirmations
    await scene.check_drained(drop)


async def test_a_living_drainer_s_entries_are_not_taken_over(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(*crowd(drop, 4))
    await leave_lying(scene)
    patient = scene.settings.model_copy(update={"take_over_idle_ms": 10_000})
    drainer = await Drainer.open(patient)
    assert await drainer.run_once() == DrainCounts()
    await drainer.close()


async def test_a_drainer_without_a_connection_is_dead_at_once_and_one_with_it_is_not(scene: Scene) -> None:
    drop = await scene.add_drop()
    patient = Scene(scene.settings.model_copy(update={"take_over_idle_ms": 60_000}), scene.pool, scene.redis)
    async with Redis.from_url(
        scene.settings.redis_url, single_connection_client=True, client_name="the-dead"
    ) as connection:
        await connection.ping()
        await scene.grab(*crowd(drop, 4))
        await leave_lying(scene, "the-dead")
        await asyncio.sleep(GONE_IDLE_MS / 1_000 + 0.1)
        async with opened(patient) as drainer:
            assert await drainer.run_once() == DrainCounts()
    async with opened(patient) as drainer:
        assert (await drainer.run_once()).committed == 4
    await scene.check_drained(drop)


async def test_two_drainers_share_a_stream(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=400)
    async with running(scene, 2):
        for batch in range(50):
            await scene.grab(*crowd(drop, 10, f"b{batch}-"))
        await wait_until(lambda: drained(scene), "everything was drained")
    assert await scene.pool.fetchval("SELECT issued FROM drops") == 400
    await scene.check_drained(drop)


async def test_while_a_relay_numbers_what_is_committed_the_ledger_is_whole_at_any_moment(
    scene: Scene,
) -> None:
    drop = await scene.add_drop(quantity=600)
    await prepare(scene.pool, datetime.now(UTC))
    await admit(scene.pool, drop, "bank-a", "bank-b")
    for n in range(30):
        await scene.grab(*crowd(drop, 20, f"w{n}"))
    sequencer = Sequencer(scene.pool)
    async with running(scene, count=2):
        while not await drained(scene):
            await sequencer.run_once(datetime.now(UTC))
            await scene.check_ledger()
    await number_all(scene.pool, datetime.now(UTC))
    await scene.check_drained(drop)
    assert await scene.pool.fetchval("SELECT count(*) FROM outbox") == 0
    await scene.pool.execute("UPDATE drop_tellings SET told_seq = told_seq - 1")
    with pytest.raises(AssertionError):
        await scene.check_ledger()


async def test_a_lost_group_is_made_anew_and_nothing_is_skipped(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with running(scene):
        await scene.grab(*crowd(drop, 2, "a"))
        await wait_until(lambda: drained(scene), "the first batch was drained")
        await scene.redis.xgroup_destroy(GRANTS, keys.GROUP)
        await scene.grab(*crowd(drop, 2, "b"))
        await wait_until(lambda: drained(scene), "the second batch was drained")
    await scene.check_drained(drop)


async def test_a_wiped_redis_does_not_stop_the_drainer(scene: Scene, redis_server: RedisServer) -> None:
    drop = await scene.add_drop()
    async with running(scene):
        await scene.grab(*crowd(drop, 2, "a"))
        await wait_until(lambda: drained(scene), "the first batch was drained")
        redis_server.flush()
        other = await scene.add_drop("other")
        await scene.grab(*crowd(other, 3, "b"))
        await wait_until(lambda: drained(scene), "the batch after the wipe was drained")
    await scene.check_drained(other)


async def test_a_restarted_redis_is_read_on_from_where_it_was(
    scene: Scene, redis_server: RedisServer
) -> None:
    drop = await scene.add_drop()
    async with running(scene):
        await scene.grab(*crowd(drop, 2, "a"))
        await asyncio.to_thread(redis_server.restart, keep_data=True)
        await scene.redis.connection_pool.disconnect()
        await scene.grab(*crowd(drop, 2, "b"))
        await wait_until(lambda: drained(scene), "both batches were drained")
    await scene.check_drained(drop)


@pytest.mark.slow
async def test_postgres_may_be_away_and_the_backlog_is_confirmed_in_order(
    scene: Scene, postgres_server: PostgresServer
) -> None:
    drop = await scene.add_drop()
    async with running(scene), listening(scene.redis) as heard:
        await scene.grab(*crowd(drop, 2, "a"))
        await wait_until(lambda: drained(scene), "the first batch was drained")
        await asyncio.to_thread(postgres_server.kill)
        for batch in range(5):
            assert await scene.grab(*crowd(drop, 3, f"away{batch}-")) == [Outcome.GRANTED] * 3
        await asyncio.sleep(0.3)
        assert list(heard) == [1], "something was confirmed without Postgres"
        await asyncio.to_thread(postgres_server.ensure_running)
        await wait_until(lambda: drained(scene), "the backlog was drained")
        await wait_until(lambda: _is(len(heard) == 6), "everyone was told")
    told = {(batch, c.place): c.seq for batch in sorted(heard) for c in heard[batch]}  # told twice is fine
    assert list(told.values()) == list(range(1, 18))
    await scene.check_drained(drop)


async def test_a_backend_that_is_ended_in_mid_rush_costs_nothing(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=300)
    async with running(scene):
        for batch in range(30):
            await scene.grab(*crowd(drop, 10, f"b{batch}-"))
            if batch % 5 == 2:
                await scene.pool.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND datname = current_database() AND backend_type = 'client backend' "
                    "AND query LIKE '%fitting%'"
                )
        await wait_until(lambda: drained(scene), "everything was drained")
    assert await scene.pool.fetchval("SELECT issued FROM drops") == 300
    await scene.check_drained(drop)


async def settle_often(drainer: Drainer) -> DrainCounts:
    """As many deliveries as an entry may have before it becomes a dead letter."""
    counts = DrainCounts()
    for _ in range(limits.ATTEMPTS_MAX_COUNT + 1):
        counts = await drainer.run_once()
        if counts.dead_letters:
            break
        await asyncio.sleep(0.12)
    return counts


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads do not wait a second each for new entries."""
    monkeypatch.setattr(limits, "DRAIN_BLOCK_MS", 20)


@pytest.mark.usefixtures("impatient")
async def test_what_no_version_can_read_becomes_a_dead_letter_after_some_attempts(scene: Scene) -> None:
    drop = await scene.add_drop()
    fields = {"v": "99", "secret": "x"}
    entry_id: Any = await scene.redis.xadd(GRANTS, fields)  # type: ignore[arg-type]
    await scene.grab(*crowd(drop, 2))
    async with opened(scene) as drainer:
        assert (await drainer.run_once()).committed == 2
        assert await scene.stream_length() == 1, "it was given up at the first attempt"
        assert (await settle_often(drainer)).dead_letters == 1
    row = await scene.pool.fetchrow("SELECT * FROM dead_letters")
    assert row is not None
    assert row["entry_id"] == entry_id.decode()
    assert b"secret" in row["payload"]
    assert await scene.stream_length() == 0
    await scene.check_drained(drop)


@pytest.mark.usefixtures("impatient")
async def test_an_entry_that_postgres_refuses_does_not_hold_up_the_others(scene: Scene) -> None:
    drop = await scene.add_drop()
    bad = grant("p9", "n9")
    packed: dict[Any, Any] = {
        "v": "1",
        "o": wire.encode_origin("o", 1),
        "t": "1",
        "d": wire.encode_drops([(2**40, 1)]),  # beyond the column
        "g": msgspec.msgpack.encode([bad]),
    }
    await scene.redis.xadd(GRANTS, packed)
    await scene.grab(*crowd(drop, 2))
    async with opened(scene) as drainer:
        assert (await drainer.run_once()).committed == 2
        assert (await settle_often(drainer)).dead_letters == 1
    reason, payload = await scene.pool.fetchrow("SELECT reason, payload FROM dead_letters") or ("", b"")
    assert b"1:p9" in payload, "a dead letter is kept whole"
    assert reason.startswith("refused by the ledger: ")
    assert "p9" not in reason
    await scene.check_drained(drop)


async def test_an_entry_that_somebody_deleted_is_forgotten(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(*crowd(drop, 2))
    async with opened(scene) as drainer:
        reply: Any = await scene.redis.xgroup_create(GRANTS, keys.GROUP, id="0")
        assert reply
        await scene.redis.xreadgroup(keys.GROUP, drainer.consumer, {GRANTS: ">"})
        entries: Any = await scene.redis.xrange(GRANTS)
        await scene.redis.xdel(GRANTS, entries[0][0])
        drainer._inbox.recover()  # noqa: SLF001 - as after a lost reply
        assert await drainer.run_once() == DrainCounts(acknowledged=0)
        pending: Any = await scene.redis.xpending(GRANTS, keys.GROUP)
    assert pending["pending"] == 0


async def test_a_read_whose_reply_was_lost_is_made_good_at_once(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(*crowd(drop, 2))
    async with opened(scene) as drainer:
        await leave_lying(scene, drainer.consumer)
        drainer._inbox.recover()  # noqa: SLF001 - as after a lost reply
        assert (await drainer.run_once()).committed == 2
    await scene.check_drained(drop)


async def test_a_drainer_that_stops_leaves_the_group_without_a_trace(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with running(scene):
        await scene.grab(*crowd(drop, 2))
        await wait_until(lambda: drained(scene), "the batch was drained")
    assert await scene.redis.xinfo_consumers(GRANTS, keys.GROUP) == []
