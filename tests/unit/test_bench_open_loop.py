import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from bench.open_connection import LATE_MS, UnreadableAnswer
from bench.open_loop import OpenLoopResult, due_times, latency_of, run
from bench.request_file import read_requests, write_requests

REQUEST = b"POST /grabs HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n{}"
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"


class Server(asyncio.Protocol):
    """Answers each request with what `answer` says; holds all answers back while it stalls."""

    answer = CREATED
    stalled = False
    in_flight_max: int = 0
    release_at_count = 0
    held: "list[Server]" = []  # noqa: RUF012 - one server per test, reset by `serving`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data == REQUEST
        if Server.stalled:
            Server.held.append(self)
            Server.in_flight_max = max(Server.in_flight_max, len(Server.held))
            if len(Server.held) == Server.release_at_count:
                Server.release()
        else:
            self.transport.write(Server.answer)

    @classmethod
    def release(cls) -> None:
        for held in cls.held:
            held.transport.write(cls.answer)


@asynccontextmanager
async def serving(answer: bytes = CREATED) -> AsyncIterator[str]:
    Server.answer, Server.stalled, Server.held, Server.in_flight_max = answer, False, [], 0
    Server.release_at_count = 0
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def stall(after_s: float, for_s: float) -> None:
    await asyncio.sleep(after_s)
    Server.stalled = True
    await asyncio.sleep(for_s)
    Server.stalled = False
    Server.release()


async def test_a_stall_of_the_server_is_seen_by_all_who_came_meanwhile_not_by_the_few_in_flight() -> None:
    async with serving() as url:
        stalling = asyncio.create_task(stall(0.3, 0.2))
        result = await run(url, [REQUEST] * 500, rate_per_s=500, duration_s=1.0, connections=4)
        await stalling
    assert Server.in_flight_max <= 4
    assert result.answered == {201: 500}
    assert result.unanswered == 0
    assert result.latency.p90_ms > 30, "a closed loop would see 4 slow answers of 500 and a fast p90"
    assert result.latency.p99_ms > 150
    assert result.late_sends > 50, "they waited for a connection"


async def test_requests_leave_when_they_are_due_although_none_was_answered_yet() -> None:
    async with serving() as url:
        Server.stalled, Server.release_at_count = True, 40
        result = await run(url, [REQUEST] * 40, rate_per_s=200, duration_s=0.2, connections=64)
    assert result.sent == result.due == 40
    assert Server.in_flight_max == 40
    assert result.late_sends == 0 or result.behind_max_ms > LATE_MS, "late by this process alone"
    assert result.answered_in_time == {}
    assert result.answered == {201: 40}


async def test_answers_in_pieces_and_of_different_statuses_are_told_apart() -> None:
    refused = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 3\r\n\r\nno!"
    async with serving(refused) as url:
        result = await run(url, [REQUEST] * 20, rate_per_s=400, duration_s=0.05, connections=8)
    assert result.answered == {503: 20}
    assert result.latency_by_status[503].samples_count == 20


async def test_what_is_never_answered_is_counted_and_not_waited_for_beyond_patience() -> None:
    async with serving() as url:
        Server.stalled = True
        result = await run(
            url, [REQUEST] * 20, rate_per_s=400, duration_s=0.05, connections=8, patience_s=0.1
        )
    assert (result.due, result.sent, result.unanswered) == (20, 8, 20)


async def test_an_answer_whose_end_cannot_be_told_fails_the_run() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") as url:
        with pytest.raises(UnreadableAnswer):
            await run(url, [REQUEST] * 4, rate_per_s=400, duration_s=0.01, connections=2)


async def test_too_few_requests_are_refused_instead_of_sent_twice() -> None:
    with pytest.raises(ValueError, match="100 requests will be due, only 99"):
        await run("http://127.0.0.1:1", [REQUEST] * 99, rate_per_s=100, duration_s=1, connections=1)


def test_random_arrivals_have_the_rate_asked_for_and_repeat_with_their_seed() -> None:
    times = due_times(1000, 10, poisson=True, seed=7)
    assert times == due_times(1000, 10, poisson=True, seed=7) == sorted(times)
    assert times != due_times(1000, 10, poisson=True, seed=8)
    assert 9_500 < len(times) < 10_500
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) > 4 * (sum(gaps) / len(gaps)), "not evenly spaced"


def test_percentiles_are_exact() -> None:
    latency = latency_of(float(ms) for ms in range(1000, 0, -1))
    assert latency == (1000, 500.0, 900.0, 990.0, 999.0, 1000.0)
    assert latency_of([]).samples_count == 0


def test_requests_and_results_survive_the_way_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    assert write_requests(path, [REQUEST, b"x" * 70_000]) == 2
    assert list(read_requests(path)) == [REQUEST, b"x" * 70_000]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends within"):
        list(read_requests(path))
    some = latency_of([1.0, 2.0])
    result = OpenLoopResult(3, 3, {201: 1, 503: 1}, {201: 1}, some, {201: some, 503: some}, 1, 0.5, 1, 2.0)
    assert OpenLoopResult.from_json(result.to_json()) == result
