"""Server-Sent Events over real HTTP: what was missed first, then what comes, never twice."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import httpx2
import pytest
from redis.asyncio import Redis

from couponsvc.api import auth, event_stream
from couponsvc.processes.api import GRACE_S
from couponsvc.programs import admission
from couponsvc.programs.admission import CredentialRequest
from couponsvc.settings import Settings
from tests.integration.feed import (
    Served,
    Told,
    everything,
    issue,
    issue_apart,
    number,
    serving,
    take,
    told,
    waiters,
    waiting_count,
)
from tests.integration.house import code_of
from tests.servers import PostgresServer

pytestmark = pytest.mark.slow  # streams that are waited for by the second, a Postgres that is restarted

SOON_S = 1.5
"""Coarse: a wake takes milliseconds, a lost one two seconds."""


@pytest.fixture
async def served(
    settings: Settings,
    pool: "asyncpg.Pool[asyncpg.Record]",
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Served]:
    monkeypatch.setattr(auth, "REFRESH_EVERY_S", 0.4)
    async with serving(settings, pool, redis) as served:
        yield served


async def test_a_stream_has_what_was_and_then_what_comes(served: Served) -> None:
    house = served.house
    await house.drop(quantity=100)
    await issue(house.pool, "wed", 2)
    await number(house.pool)
    count = len(await everything(house)) + 1
    async with served.listen() as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-request-id"]
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("retry: ")
        await issue(house.pool, "wed", 1)
        began = monotonic()
        await number(house.pool)
        fields = [await anext(lines) for _ in range(1 + count * 4)]
        assert monotonic() - began < SOON_S
    expected = await everything(house)
    assert [json.loads(line[6:]) for line in fields if line.startswith("data: ")] == expected
    assert [line[4:] for line in fields if line.startswith("id: ")] == [event["id"][4:] for event in expected]
    assert [line[7:] for line in fields if line.startswith("event: ")] == [
        event["type"] for event in expected
    ]
    await waiters(served, 0)


async def test_a_stream_goes_on_behind_the_last_event_id_whatever_the_address_says(served: Served) -> None:
    house = served.house
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", 1, 1, 1, 1)
    cursors = [event["id"][4:] for event in await everything(house)]
    async with served.listen(f"?after={cursors[1]}") as answer:
        assert [event.cursor for event in await take(answer, len(cursors) - 2)] == cursors[2:]
    async with served.listen(f"?after={cursors[0]}", last_event_id=cursors[3]) as answer:
        assert [event.cursor for event in await take(answer, len(cursors) - 4)] == cursors[4:]


async def test_a_reader_that_is_cut_off_again_and_again_loses_nothing_and_gets_nothing_twice(
    served: Served,
) -> None:
    house = served.house
    for drop_id in ("tue", "wed"):
        await house.drop(drop_id, quantity=1_000, partners=["bank-a", "bank-b"])
    await number(house.pool)
    count = len(await everything(house)) + 32
    heard: list[Told] = []

    async def write() -> None:
        for n in range(40):
            partner = ("bank-a", "bank-b")[n % 5 == 0]
            await issue_apart(house.pool, ("tue", "wed")[n % 2], 1 + n % 3, partner=partner)
            await asyncio.sleep(0.005)

    writing = asyncio.create_task(write())
    try:
        for size in (1, 2, 3, 5, 8, 13, 21):
            async with served.listen(last_event_id=heard[-1].cursor if heard else None) as answer:
                heard += await take(answer, min(size, count - len(heard)))
            if len(heard) == count:
                break
    finally:
        await writing
    assert [json.loads(event.data) for event in heard] == await everything(house)


async def test_silence_is_filled_with_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "COMMENT_EVERY_S", 0.2)
    async with served.listen() as answer, asyncio.timeout(10):
        heard = [item async for item in _first(told(answer), 3)]
    assert heard == ["nothing new"] * 3


async def test_a_client_that_goes_gives_its_place_back_at_once(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    token = served.house.tokens["bank-a"]
    head = f"GET /v1/events?wait=20 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
    writer.write(head.encode())
    async with served.listen():
        await waiters(served, 2)
        writer.close()
        await waiters(served, 1)
    await waiters(served, 0)
    assert await reader.read() == b""


async def test_a_stream_ends_with_its_key(served: Served) -> None:
    house = served.house
    made = await admission.create_key(
        house.pool, house.services.master_key, "test", CredentialRequest("partner", "bearer", "bank-a")
    )
    assert made.token is not None
    house.tokens["short"] = made.token
    async with served.listen(by="short") as answer:
        await waiters(served, 1)
        await admission.revoke_key(house.pool, "test", made.key_id)
        async with asyncio.timeout(8):
            assert [item async for item in told(answer)] == []


@pytest.mark.slow
async def test_a_stream_goes_on_when_postgres_comes_back(
    served: Served, postgres_server: PostgresServer
) -> None:
    house = served.house
    await house.drop()
    async with served.listen() as answer:
        await waiters(served, 1)
        await asyncio.to_thread(postgres_server.restart)
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await house.pool.expire_connections()
        await number(house.pool)
        assert len(await take(answer, 1)) == 1


async def test_a_long_stream_is_no_slow_answer(served: Served) -> None:
    before = await stream_seconds(served)
    async with served.listen():
        await waiters(served, 1)
        await asyncio.sleep(1)
    await waiters(served, 0)
    async with asyncio.timeout(5):
        while (after := await stream_seconds(served))[1] == before[1]:
            await asyncio.sleep(0.02)
    assert after[0] - before[0] < 0.5


async def stream_seconds(served: Served) -> tuple[float, float]:
    """Sum and count of the times that streams took to be answered."""
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        text = (await client.get(f"{served.url}/metrics")).text
    found = [0.0, 0.0]
    for line in text.splitlines():
        for place, name in enumerate(("sum", "count")):
            if line.startswith(f'couponsvc_http_request_seconds_{name}{{route="/v1/events/stream"}}'):
                found[place] = float(line.split()[-1])
    return found[0], found[1]


async def test_problems_are_told_before_a_stream_begins(served: Served) -> None:
    for query, by, code in (("?after=x", "bank-a", "invalid_request"), ("", "operator", "forbidden")):
        async with served.listen(query, by=by) as answer:
            await answer.aread()
            assert code_of(answer) == code


@pytest.mark.slow
async def test_a_slow_reader_costs_a_page_and_a_stalled_one_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """90 events of 175 kB, ten readers that read nothing: held are a page each, not what they missed."""
    monkeypatch.setattr(event_stream, "STALLED_S", 2.0)
    house = served.house
    await house.drop(quantity=50_000)
    for _ in range(9):
        await issue(house.pool, "wed", 5_000)
    await number(house.pool)
    assert await house.pool.fetchval("SELECT count(*) FROM events") > 90
    before_kb = most_kb = resident_kb()
    async with contextlib.AsyncExitStack() as streams:
        readers = [await streams.enter_async_context(stalled(served)) for _ in range(10)]
        await waiters(served, 10)
        async with asyncio.timeout(30):
            while await waiting_count(served) > 0:
                most_kb = max(most_kb, resident_kb())
                await asyncio.sleep(0.05)
        assert most_kb - before_kb < 60_000, "ten times what was not read would be 150 MB"
        for reader in readers:
            assert 0 < await read_all(reader) < 90


@contextlib.asynccontextmanager
async def stalled(served: Served) -> AsyncIterator[asyncio.StreamReader]:
    """A stream whose client takes little into its socket and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", int(served.url.rpartition(":")[2])))
    token = served.house.tokens["bank-a"]
    head = f"GET /v1/events/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
    await loop.sock_sendall(connection, head.encode())
    reader, writer = await asyncio.open_connection(sock=connection, limit=1_024)
    try:
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_all(reader: asyncio.StreamReader) -> int:
    """How many whole events arrived until the connection ended."""
    content = b""
    async with asyncio.timeout(20):
        while chunk := await reader.read(1 << 20):
            content += chunk
    return content.count(b"\nid: ") + content.count(b"\r\nid: ")


def resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


async def test_fifty_streams_and_waits_end_within_the_grace(served: Served) -> None:
    house = served.house
    await house.drop()
    await number(house.pool)
    count = len(await everything(house))
    ends: list[Any] = []

    async def hear(opened: asyncio.Event) -> None:
        async with served.listen() as answer:
            heard = []
            async for item in told(answer):
                heard.append(item)
                opened.set()
            ends.append(heard)

    async def wait() -> None:
        headers = {"authorization": f"Bearer {house.tokens['bank-b']}"}
        async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=30, headers=headers) as client:
            answer = await client.get(f"{served.url}/v1/events?wait=20")
            ends.append(answer.json())

    opened = [asyncio.Event() for _ in range(50)]
    readers = [asyncio.create_task(hear(event)) for event in opened]
    readers += [asyncio.create_task(wait()) for _ in range(5)]
    await asyncio.gather(*(event.wait() for event in opened))
    await waiters(served, 55)
    began = monotonic()
    served.stop.set()
    await served.running
    assert monotonic() - began < GRACE_S
    await asyncio.gather(*readers)
    assert len(ends) == 55, "every answer was complete"
    assert sum(isinstance(end, list) and len(end) == count for end in ends) == 50


async def _first(items: AsyncIterator[Told | str], count: int) -> AsyncIterator[Told | str]:
    async for item in items:
        yield item
        count -= 1
        if count == 0:
            return
