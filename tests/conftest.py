"""Fixtures that every test may use; the servers are real (see servers.py)."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from tests.servers import PostgresServer, RedisServer, children, short_directory, wait_until_gone

KEY_PREFIX = "cs:{s0}:"
MASTER_KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with short_directory() as data_dir:
        server = RedisServer(data_dir)
        yield server
        server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with short_directory() as data_dir:
        server = PostgresServer(data_dir)
        yield server
        server.engine.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """Of an empty Redis; afterwards checks that every key was one of ours."""
    redis_server.ensure_running()
    redis_server.flush()
    yield redis_server.url
    redis_server.ensure_running()
    foreign = redis_server.foreign_keys(KEY_PREFIX)
    assert not foreign, f"keys outside {KEY_PREFIX} were written: {foreign[:10]}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = open_redis(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """DSN of a fresh migrated database."""
    postgres_server.ensure_running()
    dsn = await postgres_server.create_database()
    yield dsn
    postgres_server.ensure_running()
    await postgres_server.recycle(dsn)


@pytest.fixture
async def empty_database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """DSN of a fresh database without a schema."""
    postgres_server.ensure_running()
    dsn = await postgres_server.create_empty_database()
    yield dsn
    postgres_server.ensure_running()
    await postgres_server.drop_database(dsn)


@pytest.fixture
async def pool(database: str) -> "AsyncIterator[asyncpg.Pool[asyncpg.Record]]":
    pool = await open_pool(database)
    yield pool
    pool.terminate()


@pytest.fixture
def settings(redis_url: str, database: str) -> Settings:
    return Settings.model_validate(
        {"redis_url": redis_url, "postgres_dsn": database, "master_key": MASTER_KEY, "port": 0}
    )


@pytest.fixture(autouse=True)
def _no_process_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    before = set(children())
    yield
    engines = set()
    for name in ("redis_server", "postgres_server"):
        if name in request.fixturenames:
            engines.add(request.getfixturevalue(name).engine.pid)
    started = {pid: command for pid, command in children().items() if pid not in before | engines}
    left = wait_until_gone(started)
    assert not left, f"processes left behind: {[started[pid] for pid in left]}"


@pytest.fixture(autouse=True)
async def _no_task_left_behind() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:  # a cancelled task needs a turn of the loop to end
        _, left = await asyncio.wait(left, timeout=0.5)
    assert not left, f"{len(left)} tasks left behind, among them {list(left)[:3]}"
