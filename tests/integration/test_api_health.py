"""Health, metrics and documentation answer without a credential and without the Internet."""

import re
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.settings import Settings
from tests.integration.house import House, code_of
from tests.servers import RedisServer


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def test_a_ready_process_names_both_servers(house: House) -> None:
    answer = await house.call("GET", "/readyz", by=None)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["status"] == "ready"
    assert re.fullmatch(r"(valkey|redis) [\d.]+", found["redis"])
    assert re.fullmatch(r"[\d.]+", found["postgres"])


async def test_what_is_missing_is_named(house: House, redis_server: RedisServer) -> None:
    async def missing() -> list[str]:
        answer = await house.call("GET", "/readyz", by=None)
        assert code_of(answer) == "not_ready"
        names: list[str] = answer.json()["missing"]
        return names

    await house.pool.execute("UPDATE blessings SET run_id = 'another'")
    assert await missing() == ["blessing"]
    await house.bless()
    redis_server.kill()
    assert await missing() == ["redis"]
    assert (await house.call("GET", "/livez", by=None)).status_code == 200
    redis_server.ensure_running()


async def test_a_schema_of_another_version_is_not_ready(house: House) -> None:
    await house.pool.execute("UPDATE schema_migrations SET sha256 = 'changed'")
    assert (await house.call("GET", "/readyz", by=None)).json()["missing"] == ["migrations"]


async def test_documentation_loads_nothing_from_elsewhere(house: House) -> None:
    page = (await house.call("GET", "/docs", by=None)).text
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(linked) == 3
    for path in linked:
        assert path.startswith("/docs/assets/")
        assert (await house.call("GET", path, by=None)).status_code == 200
    assert (await house.call("GET", "/openapi.json", by=None)).json()["openapi"].startswith("3.1")
    assert code_of(await house.call("GET", "/docs/assets/none.js", by=None)) == "not_found"
