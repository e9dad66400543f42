"""Each alternative of the bench starts, does the job, refuses a second voucher, and is checked."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from bench.contender import Contender, Engines, Level
from bench.contenders import ALTERNATIVES, checks
from bench.contenders.queued_rows import QUEUED_SCRIPT
from bench.contenders.serving import ContenderFailed, uvicorn_serving
from redis.asyncio import Redis

from tests.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.faults  # slower than the fast set may be

BY_NAME = {contender.name: contender for contender in ALTERNATIVES}


@pytest.fixture
async def engines(
    redis_server: RedisServer, postgres_server: PostgresServer, empty_database: str
) -> AsyncIterator[Engines]:
    redis_server.ensure_running()
    redis_server.flush()
    assert redis_server.engine.pid is not None
    assert postgres_server.engine.pid is not None
    yield Engines(redis_server.url, redis_server.engine.pid, empty_database, postgres_server.engine.pid)
    redis_server.flush()


async def answers(url: str, requests: list[bytes]) -> list[int]:
    """Statuses of requests sent one after another on one kept-open connection."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    statuses = []
    for request in requests:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        statuses.append(int(head.split()[1]))
    writer.close()
    await writer.wait_closed()
    return statuses


def skip_if_missing(contender: Contender) -> None:
    if reason := contender.missing():
        pytest.skip(reason)


@pytest.mark.parametrize("contender", ALTERNATIVES, ids=lambda contender: contender.name)
async def test_an_alternative_does_the_job_and_leaves_nothing_behind(
    contender: Contender, engines: Engines, tmp_path: Path
) -> None:
    skip_if_missing(contender)
    requests = list(contender.requests(0, 3))
    async with contender.running(engines, tmp_path) as running:
        first = await answers(running.url, requests)
        assert all(200 <= status < 300 for status in first), first
        if contender.level is not Level.NOTHING:
            assert await answers(running.url, requests[:1]) == [409], "the same person again"
        assert await contender.invariants(engines, 3) == []
    assert await contender.invariants(engines, 3) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["raw-asgi", "nginx"])
async def test_an_alternative_dies_with_the_block_that_fails(
    name: str, engines: Engines, tmp_path: Path
) -> None:
    skip_if_missing(BY_NAME[name])
    with pytest.raises(ZeroDivisionError):
        async with BY_NAME[name].running(engines, tmp_path) as running:
            raise ZeroDivisionError
    with pytest.raises(ConnectionRefusedError):
        await answers(running.url, list(BY_NAME[name].requests(0, 1)))
    assert list(tmp_path.iterdir()) == []


async def test_an_alternative_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ContenderFailed, match="nothing_like_it"):
        async with uvicorn_serving("raw_asgi:nothing_like_it", tmp_path, {}, factory=False):
            pytest.fail("it started")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted violation does not go away by waiting."""
    monkeypatch.setattr(checks, "PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
async def test_planted_violations_at_level_d_are_found(engines: Engines, tmp_path: Path) -> None:
    usual = BY_NAME["usual-service"]
    async with usual.running(engines, tmp_path) as running:
        assert await answers(running.url, list(usual.requests(0, 3))) == [201] * 3
    assert await usual.invariants(engines, 3) == []
    assert await usual.invariants(engines, 4) == ["answered 2xx: 4, but vouchers: 3"]
    connection = await asyncpg.connect(engines.postgres_dsn)
    await connection.execute("DELETE FROM outbox WHERE seq = 1")
    assert "outbox rows: 2, but vouchers: 3" in await usual.invariants(engines, 3)
    await connection.execute("DELETE FROM vouchers WHERE seq = 2")
    assert "units taken: 3, but vouchers: 2" in await usual.invariants(engines, 3)
    assert "vouchers told of: 1, but vouchers: 2" in await usual.invariants(engines, 3)
    await connection.close()
    async with Redis.from_url(engines.redis_url) as redis:
        await redis.decr(checks.STOCK)
    assert "units taken: 4, but vouchers: 2" in await usual.invariants(engines, 3)


@pytest.mark.usefixtures("impatient")
async def test_planted_violations_at_level_c_are_found(engines: Engines) -> None:
    """Grants are made by the script itself, so that this runs without Node too."""
    fastify = BY_NAME["fastify"]
    await checks.stock_redis(engines)
    async with Redis.from_url(engines.redis_url) as redis:
        take = redis.register_script(QUEUED_SCRIPT.read_text("utf-8"))
        keys = [checks.STOCK, checks.PERSONS, checks.GRANTS]
        for person in ("p-1", "p-2", "p-3"):
            await take(keys, [person, f"n-{person}", "app", "370200"])
        assert await fastify.invariants(engines, 3) == []
        assert await fastify.invariants(engines, 2) == ["answered 2xx: 2, but grants queued: 3"]
        await redis.xtrim(checks.GRANTS, maxlen=2, approximate=False)
        assert "units taken: 3, but grants queued: 2" in await fastify.invariants(engines, 3)
        await redis.xadd(checks.GRANTS, {"person": "p-2"})
        assert await fastify.invariants(engines, 3) == ["persons in the queue: 2, but grants queued: 3"]
        await redis.incr(checks.STOCK)
        assert "units taken: 2, but grants queued: 3" in await fastify.invariants(engines, 3)
