"""`couponsvc check`: zero drift is said only of what agrees in every number and every note."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.gate.loading import publish_new_drop
from couponsvc.ledger.drainer import Drainer
from couponsvc.reconcile.check import DRAINED, check, check_stream, main, render
from couponsvc.reconcile.judging import Kind
from couponsvc.reconcile.snapshot import Pool, StreamSide
from couponsvc.settings import Settings
from couponsvc.values import keys
from couponsvc.values.drop import Drop
from tests.integration.outbox_scene import number_all, prepare
from tests.integration.scene import grab, make_drop


@pytest.fixture
async def drainer(settings: Settings) -> AsyncIterator[Drainer]:
    drainer = await Drainer.open(settings)
    yield drainer
    await drainer.close()


@pytest.fixture
async def sold(pool: "Pool[asyncpg.Record]", redis: Redis, drainer: Drainer) -> Drop:
    """A drop of 10 of which 3 are issued, in agreement."""
    drop = await make_drop(pool)
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a", "b")
    await drainer.run_once()
    await grab(redis, drop, "c")
    await drainer.run_once()
    return drop


async def test_agreement_is_no_drift(pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop) -> None:
    [line] = await check(pool, redis)
    assert (line.drop_id, line.quantity, line.available, line.pending, line.issued) == (
        sold.drop_id,
        10,
        7,
        0,
        3,
    )
    assert line.drift == 0
    assert await check_stream(redis, 0) == DRAINED


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("UPDATE drops SET issued = issued + 1", Kind.ISSUED),
        ("DELETE FROM vouchers WHERE seq = 3", Kind.ROWS),
        ("UPDATE vouchers SET seq = 4 WHERE seq = 3", Kind.NUMBERS),
        ("DELETE FROM outbox WHERE first_seq = 3", Kind.OUTBOX),
        ("UPDATE outbox SET last_seq = 3 WHERE first_seq = 1", Kind.OUTBOX),
        ("UPDATE outbox SET last_seq = 1 WHERE first_seq = 1", Kind.OUTBOX),
        ("UPDATE outbox SET last_seq = 4 WHERE first_seq = 3", Kind.OUTBOX),
        ("UPDATE vouchers SET code = 'OTHER' WHERE seq = 2", Kind.HOLDERS),
        ("UPDATE vouchers SET issued_at = issued_at + interval '1 ms' WHERE seq = 2", Kind.HOLDERS),
        ("UPDATE vouchers SET person_token = 'other' WHERE seq = 2", Kind.HOLDERS),
        ("UPDATE drops SET per_person_limit = 3", Kind.DEFINITION),
        ("UPDATE drops SET quantity = 11", Kind.DEFINITION),
        ("UPDATE drops SET version = version + 1", Kind.DEFINITION),
        ("UPDATE drops SET epoch = epoch + 1", Kind.NOT_LOADED),
    ],
)
async def test_damage_in_postgres_is_drift(
    pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop, damage: str, kind: Kind
) -> None:
    assert sold.drop_no
    await pool.execute(damage)
    [line] = await check(pool, redis, patience_s=0.1)
    assert kind in {finding.kind for finding in line.findings}
    assert line.drift > 0


async def test_what_a_relay_took_out_of_the_outbox_is_counted_as_told(
    pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop, drainer: Drainer
) -> None:
    await prepare(pool)
    await number_all(pool)
    await grab(redis, sold, "d")
    await drainer.run_once()
    await number_all(pool)
    [line] = await check(pool, redis)
    assert (line.issued, line.drift) == (4, 0)
    await pool.execute("DELETE FROM events WHERE drop_no = $1 AND first_seq = 4", sold.drop_no)
    [line] = await check(pool, redis)
    assert {finding.kind for finding in line.findings} == {Kind.OUTBOX}
    assert line.drift == 1


@pytest.mark.parametrize(
    ("field", "by", "kinds"),
    [
        ("available", 1, {Kind.CONSERVATION}),
        ("available", -1, {Kind.CONSERVATION}),
        ("issued", 1, {Kind.CONSERVATION, Kind.ISSUED, Kind.HOLDERS}),
        ("pending", 1, {Kind.CONSERVATION, Kind.STUCK, Kind.HOLDERS}),
    ],
)
async def test_damage_in_redis_is_drift(  # noqa: PLR0917 - fixtures
    pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop, field: str, by: int, kinds: set[Kind]
) -> None:
    await redis.hincrby(keys.state_key(0, sold.drop_no, 1), field, by)
    [line] = await check(pool, redis, patience_s=0.1)
    assert {finding.kind for finding in line.findings} == kinds
    assert line.drift == 1


async def test_pending_grants_are_waited_for(
    pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop, drainer: Drainer
) -> None:
    await grab(redis, sold, "d", "e")
    checking = asyncio.create_task(check(pool, redis))
    await asyncio.sleep(0.1)
    assert not checking.done()
    await drainer.run_once()
    [line] = await checking
    assert (line.available, line.pending, line.issued, line.drift) == (5, 0, 5, 0)


async def test_grants_that_nobody_commits_are_reported(
    pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop
) -> None:
    await grab(redis, sold, "d", "e")
    [line] = await check(pool, redis, patience_s=0.1)
    assert [finding.kind for finding in line.findings] == [Kind.STUCK]
    assert (line.available, line.pending, line.issued, line.drift) == (5, 2, 3, 2)
    left = await check_stream(redis, 0, patience_s=0.05)
    assert left == StreamSide(2, 1)
    assert "2 grants in 1 entries are left over" in render([line], left)


async def test_a_drop_in_motion_agrees_within_bounds(
    pool: "Pool[asyncpg.Record]", redis: Redis, drainer: Drainer
) -> None:
    drop = await make_drop(pool, quantity=5_000)
    await publish_new_drop(redis, drop)
    stop = asyncio.Event()

    async def rush() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            await grab(redis, drop, *(f"p{turn}-{n}" for n in range(5)))
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(rush()), asyncio.create_task(drainer.run(stop))]
    try:
        lines = [(await check(pool, redis, patience_s=0.2))[0] for _ in range(3)]
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    for line in lines:
        assert line.findings == []
        assert line.drift == 0


async def test_one_drop_is_checked_alone_and_an_unknown_one_is_named(
    pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop
) -> None:
    other = await make_drop(pool, "drop-b")
    await publish_new_drop(redis, other)
    assert [line.drop_id for line in await check(pool, redis, sold.drop_id)] == [sold.drop_id]
    assert [line.drop_id for line in await check(pool, redis)] == [sold.drop_id, "drop-b"]
    with pytest.raises(LookupError, match="drop-c"):
        await check(pool, redis, "drop-c")


async def test_checking_changes_nothing(pool: "Pool[asyncpg.Record]", redis: Redis, sold: Drop) -> None:
    await pool.execute("UPDATE drops SET quantity = 20, version = 2")
    before = await redis.hgetall(keys.state_key(0, sold.drop_no, 1))
    [line] = await check(pool, redis, patience_s=0.05)
    assert line.drift > 0
    assert await redis.hgetall(keys.state_key(0, sold.drop_no, 1)) == before


async def run(settings: Settings, drop_id: str | None = None) -> int:
    """`main` starts a loop of its own, as the command does."""
    return await asyncio.to_thread(main, settings, drop_id)


async def test_the_command_prints_the_identity_and_ends_with_0_1_or_2(
    pool: "Pool[asyncpg.Record]", settings: Settings, sold: Drop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(settings) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["drop", "quantity", "available", "pending", "issued", "drift", "verdict"]
    assert out[1].split() == [sold.drop_id, "10", "7", "0", "3", "0", "agrees"]
    assert out[2] == "1 drops checked, quantity = available + pending + issued, drift 0"

    await pool.execute("DELETE FROM outbox WHERE first_seq = 3")
    assert await run(settings, sold.drop_id) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[-2:] == ["1", "DRIFT"]
    assert out[2].startswith(f"{sold.drop_id}: outbox: ")

    assert await run(settings, "nothing") == 2
    assert "there is no drop nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("away", "server"),
    [
        ({"redis_url": "redis://127.0.0.1:1/0"}, "Redis"),
        ({"postgres_dsn": "postgresql://postgres:secret@127.0.0.1:1/x"}, "Postgres"),
    ],
)
async def test_a_server_that_is_away_ends_with_3_and_one_line(
    settings: Settings, away: dict[str, str], server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Settings.model_validate(
        {
            "redis_url": settings.redis_url,
            "postgres_dsn": settings.postgres_dsn,
            "master_key": settings.master_key,
            **away,
        }
    )
    assert await run(changed) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"couponsvc check: cannot reach {server} (")
    assert error.count("\n") == 1
    assert "secret" not in error
