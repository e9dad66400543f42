"""Fixtures that every test may use; the servers are real (see servers.py)."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from couponsvc.api import openapi
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
async def postgres_server() -> AsyncIterator[PostgresServer]:
    with short_directory() as data_dir:
        server = PostgresServer(data_dir)
        yield server
        await server.close()


@pytest.fixture(scope="session", autouse=True)
def _one_document() -> Iterator[None]:
    """Make the OpenAPI document once: it takes 0.2 s, depends on code alone, and every application has it."""
    made: list[dict[str, Any]] = []
    make = openapi.document

    def document(app: FastAPI) -> dict[str, Any]:
        if not made:
            made.append(make(app))
        return made[0]

    openapi.document = document
    yield
    openapi.document = make


@contextmanager
def emptied(redis_server: RedisServer) -> Iterator[str]:
    """URL of an empty Redis; afterwards checks that every key was one of ours."""
    redis_server.ensure_running()
    redis_server.flush()
    yield redis_server.url
    redis_server.ensure_running()
    foreign = redis_server.foreign_keys(KEY_PREFIX)
    assert not foreign, f"keys outside {KEY_PREFIX} were written: {foreign[:10]}"


@asynccontextmanager
async def migrated(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """DSN of a fresh migrated database."""
    postgres_server.ensure_running()
    dsn = await postgres_server.create_database()
    yield dsn
    postgres_server.ensure_running()
    await postgres_server.recycle(dsn)


def settings_for(redis_url: str, database: str) -> Settings:
    return Settings.model_validate(
        {"redis_url": redis_url, "postgres_dsn": database, "master_key": MASTER_KEY, "port": 0}
    )


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """Of an empty Redis."""
    with emptied(redis_server) as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = open_redis(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """DSN of a fresh migrated database."""
    async with migrated(postgres_server) as dsn:
        yield dsn


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
    return settings_for(redis_url, database)


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


@asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    """Afterwards checks that what began here has ended."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:  # a cancelled task needs a turn of the loop to end
        _, left = await asyncio.wait(left, timeout=0.5)
    assert not left, f"{len(left)} tasks left behind, among them {list(left)[:3]}"


@pytest.fixture(autouse=True)
async def _no_task_left_behind() -> AsyncIterator[None]:
    async with no_task_left():
        yield
