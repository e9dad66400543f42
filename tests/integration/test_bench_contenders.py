"""Each alternative of the bench starts, does the job, refuses a second voucher, and is checked."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bench.contender import Contender, Engines, Level
from bench.contenders import ALTERNATIVES

from tests.servers import PostgresServer, RedisServer

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
