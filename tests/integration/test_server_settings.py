"""Unsafe servers are refused, each setting by name, with the value to set."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.support.redis_client import open_redis
from couponsvc.support.server_settings import Connection, UnsafeServer, refuse_unsafe, server_versions
from tests.servers import short_directory


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def test_the_embedded_engines_are_safe(redis: Redis, connection: Connection) -> None:
    await refuse_unsafe(redis, connection)


@pytest.mark.parametrize(
    ("setting", "unsafe", "cure"),
    [
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy allkeys-lru: set it to noeviction"),
        ("maxmemory-policy", "volatile-ttl", "maxmemory-policy volatile-ttl: set it to noeviction"),
        ("no-appendfsync-on-rewrite", "yes", "no-appendfsync-on-rewrite yes: set it to no"),
    ],
)
async def test_a_redis_setting_that_loses_data_is_refused_by_name(
    redis: Redis, connection: Connection, setting: str, unsafe: str, cure: str
) -> None:
    before = await redis.config_get(setting)
    await redis.config_set(setting, unsafe)
    try:
        with pytest.raises(UnsafeServer, match=cure):
            await refuse_unsafe(redis, connection)
        await refuse_unsafe(redis, connection, allow=True)
    finally:
        await redis.config_set(setting, str(before[setting]))


@pytest.mark.parametrize(
    ("value", "safe"),
    [("off", False), ("local", False), ("on", True), ("remote_write", True), ("remote_apply", True)],
)
async def test_commits_that_do_not_wait_for_the_disk_are_refused(
    redis: Redis, connection: Connection, value: str, *, safe: bool
) -> None:
    await connection.execute(f"SET synchronous_commit = {value}")
    if safe:
        await refuse_unsafe(redis, connection)
    else:
        with pytest.raises(UnsafeServer, match=f"synchronous_commit {value}: set it to on"):
            await refuse_unsafe(redis, connection)


@pytest.mark.slow
async def test_a_postgres_that_a_power_cut_damages_is_refused(redis: Redis) -> None:
    unsafe = {"fsync": "off", "full_page_writes": "off"}
    with short_directory() as data_dir:
        server = EmbeddedPostgres(data_dir, settings=unsafe)
        server.start()
        try:
            connection = await asyncpg.connect(server.maintenance_dsn)
            with pytest.raises(UnsafeServer) as refused:
                await refuse_unsafe(redis, connection)
            await connection.close()
        finally:
            server.stop()
    for setting in unsafe:
        assert f"{setting} off: set it to on" in str(refused.value)


async def test_every_fault_is_named_at_once(redis: Redis, connection: Connection) -> None:
    await connection.execute("SET synchronous_commit = off")
    await redis.config_set("maxmemory-policy", "allkeys-random")
    try:
        with pytest.raises(UnsafeServer) as refused:
            await refuse_unsafe(redis, connection)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert "maxmemory-policy" in str(refused.value)
    assert "synchronous_commit" in str(refused.value)


async def test_a_managed_redis_that_forbids_config_is_judged_by_info(
    redis: Redis, redis_url: str, connection: Connection
) -> None:
    await redis.acl_setuser(
        "managed",
        enabled=True,
        passwords=["+managed"],
        keys=["*"],
        categories=["+@all"],
        commands=["-config"],
    )
    managed = open_redis(f"redis://managed:managed@{redis_url.split('@')[1]}")
    try:
        await refuse_unsafe(managed, connection)
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(UnsafeServer, match="maxmemory-policy allkeys-lru"):
            await refuse_unsafe(managed, connection)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.acl_deluser("managed")
        await managed.aclose()


async def test_versions_are_those_of_the_product_that_runs(redis: Redis, connection: Connection) -> None:
    versions = await server_versions(redis, connection)
    facts = await redis.info("server")
    if "valkey_version" in facts:
        assert versions["redis"] == f"valkey {facts['valkey_version']}"
    else:
        assert versions["redis"] == f"redis {facts['redis_version']}"
    assert versions["postgres"].split(".", maxsplit=1)[0] == str(connection.get_server_version().major)
