"""The doorbell: who answers at an address now, whoever answered there before."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc.reconcile import doorbell as doorbell_module
from couponsvc.reconcile.doorbell import Doorbell
from couponsvc.reconcile.identity import read_identity
from couponsvc.settings import Settings
from couponsvc.support.server_identity import NotMaster
from tests.servers import RedisServer


@pytest.fixture
async def doorbell(settings: Settings) -> AsyncIterator[Doorbell]:
    doorbell = Doorbell(settings.redis_url)
    yield doorbell
    doorbell.close()


async def connection_count(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_connections_received"])


async def test_it_hears_the_same_as_any_client(redis: Redis, doorbell: Doorbell) -> None:
    assert await doorbell.ask() == await read_identity(redis)


async def test_it_keeps_its_line_for_a_while_and_then_opens_another(
    redis: Redis, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.ping()
    before = await connection_count(redis)
    for _ in range(3):
        await doorbell.ask()
    assert await connection_count(redis) == before + 1
    monkeypatch.setattr(doorbell_module, "FRESH_CONNECTION_S", -1.0)
    for _ in range(3):
        await doorbell.ask()
    assert await connection_count(redis) == before + 4


async def test_a_replica_is_refused(redis: Redis, doorbell: Doorbell) -> None:
    await doorbell.ask()
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(NotMaster):
            await doorbell.ask()
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]


async def test_a_restarted_server_is_another_one(doorbell: Doorbell, redis_server: RedisServer) -> None:
    before = await doorbell.ask()
    redis_server.restart(keep_data=True)
    async with asyncio.timeout(10):
        after = before
        while after == before:
            with contextlib.suppress(RedisError, OSError):
                after = await doorbell.ask()
            await asyncio.sleep(0.02)
    assert after.run_id != before.run_id
