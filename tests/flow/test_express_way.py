"""However a grab's bytes arrive, it gets the same answer: whole, in pieces, pipelined, or beside others."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from urllib.parse import urlsplit

import pytest

from tests.flow.conftest import PROCESSES, Service

_numbers = count(1)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(service: Service) -> AsyncIterator[Streams]:
    at = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def grab(service: Service, drop_id: str, person: str, number: str = "", *extra: str) -> bytes:
    """A grab's raw bytes; fields of `extra` send it past the express way where they are unusual."""
    body = json.dumps({"person_token": person, "out_request_no": number or f"n-{next(_numbers)}"}).encode()
    lines = [
        f"POST /v1/drops/{drop_id}/grabs HTTP/1.1",
        "Host: couponsvc",
        f"Authorization: Bearer {service.credentials['partner']['token']}",
        "X-Request-Id: same-for-all",
        f"Content-Length: {len(body)}",
        *extra,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of the next answer."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.partition(b":")[2]))
    return int(head[9:12]), head, body


async def test_the_express_answer_is_byte_for_byte_that_of_the_other_way(service: Service) -> None:
    drop_id = await service.drop(1)
    async with connection(service) as (reader, writer):
        for person, number in (("p-1", "a"), ("p-1", "a"), ("p-1", "b"), ("p-2", "c"), ("", "d")):
            answers = []
            for extra in ((), ("TE: trailers",)):
                writer.write(grab(service, drop_id, person, number, *extra))
                answers.append(await answer(reader))
            if answers[0][0] == 201:
                assert answers[1][0] == 200
                assert answers[0][2] == answers[1][2]
            else:
                assert answers[0] == answers[1]


@pytest.mark.parametrize("cut", [1, 14, 60, -200, -70, -40, -1])
async def test_a_grab_that_arrives_in_two_pieces_is_answered_once(service: Service, cut: int) -> None:
    drop_id = await service.drop(5)
    async with connection(service) as (reader, writer):
        raw = grab(service, drop_id, "p-1")
        for piece in (raw[:cut], raw[cut:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        assert (await answer(reader))[0] == 201
        writer.write(grab(service, drop_id, "p-2"))
        assert (await answer(reader))[0] == 201
    assert (await service.settled(drop_id))["issued"] == 2


async def test_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    drop_id = await service.drop(5)
    look = f"GET /v1/drops/{drop_id} HTTP/1.1\r\nHost: couponsvc\r\n\r\n".encode()
    async with connection(service) as (reader, writer):
        first, second = grab(service, drop_id, "p-1"), grab(service, drop_id, "p-2")
        writer.write(first)
        await asyncio.sleep(0)  # the first alone goes the express way, the others come while it waits
        writer.write(look + second + look)
        writer.write(grab(service, drop_id, "p-3"))
        assert [(await answer(reader))[0] for _ in range(5)] == [201, 401, 201, 401, 201]
        writer.write(first + second)  # both at once
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]
    assert (await service.settled(drop_id))["issued"] == 3


async def test_a_client_that_hangs_up_in_mid_decision_keeps_what_it_was_granted(service: Service) -> None:
    drop_id = await service.drop(40)
    for person in range(40):
        async with connection(service) as (_, writer):
            writer.write(grab(service, drop_id, f"p-{person}", f"gone-{person}"))
            await writer.drain()
    figures = await service.settled(drop_id)
    assert figures["issued"] + figures["available"] == 40
    async with connection(service) as (reader, writer):
        told = set()
        for person in range(40):
            writer.write(grab(service, drop_id, f"p-{person}", f"gone-{person}"))
            told.add((await answer(reader))[0])
        assert told <= {200, 201}
    assert (await service.settled(drop_id))["issued"] == 40


async def test_a_connection_that_is_to_be_closed_is_closed_after_the_answer(service: Service) -> None:
    drop_id = await service.drop(5)
    async with connection(service) as (reader, writer):
        writer.write(grab(service, drop_id, "p-1", "", "Connection: close"))
        status, head, _ = await answer(reader)
        assert (status, b"connection: close" in head) == (201, True)
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_garbage_after_a_grab_is_refused_and_the_grab_answered(service: Service) -> None:
    drop_id = await service.drop(5)
    async with connection(service) as (reader, writer):
        writer.write(grab(service, drop_id, "p-1"))
        assert (await answer(reader))[0] == 201
        writer.write(b"POST /v1/drops/\x00 HTTP/1.1\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")


async def test_a_stopping_service_answers_the_grab_that_it_has(service: Service) -> None:
    drop_id = await service.drop(5)
    async with connection(service) as (reader, writer):
        writer.write(grab(service, drop_id, "p-0"))
        assert (await answer(reader))[0] == 201
        await service.stop("drain")
        writer.write(grab(service, drop_id, "p-1"))
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(service.stop("api"))
        assert (await answer(reader))[0] == 202
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await stopping
        await service.start("api")
        await service.start("drain")


@pytest.mark.slow
async def test_a_connection_is_closed_after_its_idle_time_and_not_before(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_id = await service.drop(5)
    await service.stop("api")
    monkeypatch.setattr("couponsvc.processes.api.KEEP_ALIVE_S", 1)
    await service.run_exactly(PROCESSES)
    async with connection(service) as (reader, writer):
        for person in range(3):  # in all longer than the idle time, each pause shorter
            writer.write(grab(service, drop_id, f"p-{person}"))
            assert (await answer(reader))[0] == 201
            await asyncio.sleep(0.4)
        writer.write(grab(service, drop_id, "p-0", "", "TE: trailers"))  # past the express way
        assert (await answer(reader))[0] == 409
        writer.write(grab(service, drop_id, "p-4"))
        assert (await answer(reader))[0] == 201
        assert await asyncio.wait_for(reader.read(), 5) == b""
    await service.stop("api")  # so that the next test has one with the usual idle time
