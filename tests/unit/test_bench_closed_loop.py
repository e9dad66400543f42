import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from bench import closed_loop
from bench.closed_loop import LoopFailed, judge, run_wrk
from bench.request_file import write_requests

FIGURES: dict[str, Any] = {
    "sent": 1000,
    "answered": 1000,
    "at_open": 100,
    "at_end": 900,
    "window_s": 2.0,
    "status_400_up": 30,
    "broken": 0,
    "ran_out": 0,
    "p50_ms": 1.0,
    "p90_ms": 2.0,
    "p99_ms": 3.0,
    "cpu_s": 0.005,
}
CONNECTIONS = 16
needs_wrk = pytest.mark.skipif(closed_loop.missing() is not None, reason=str(closed_loop.missing()))


class Server(asyncio.Protocol):
    """Remembers the path of every request; refuses `/no…`."""

    seen: ClassVar[Counter[bytes]] = Counter()
    hang_up_after: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1]
        Server.seen[path] += 1
        if Server.hang_up_after is not None and Server.seen.total() > Server.hang_up_after:
            self.transport.abort()
            return
        status = b"409 Conflict" if path.startswith(b"/no") else b"200 OK"
        self.transport.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % status)


@asynccontextmanager
async def serving(hang_up_after: int | None = None) -> AsyncIterator[str]:
    Server.seen, Server.hang_up_after = Counter(), hang_up_after
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def paths(count: int, every_refused: int = 0) -> Iterator[bytes]:
    for place in range(count):
        kind = "no" if every_refused and place % every_refused == 0 else "yes"
        yield f"GET /{kind}-{place} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


@needs_wrk
async def test_each_request_is_sent_once_and_every_one_sent_is_answered_and_counted(tmp_path: Path) -> None:
    write_requests(tmp_path / "requests", paths(100_000, every_refused=10))
    async with serving() as url:
        result = await run_wrk(url, tmp_path / "requests", connections=CONNECTIONS, window_s=0.3)
    assert not result.ran_out
    assert 0.2 < result.window_s < 0.4
    assert set(Server.seen.values()) == {1}
    assert result.answered == Server.seen.total() == len(Server.seen)
    assert result.refused == sum(path.startswith(b"/no") for path in Server.seen)
    assert result.accepted == result.answered - result.refused > 0
    assert 0 < result.requests_per_s * result.window_s <= result.answered
    assert result.wrk_cpu_us > 0
    assert result.p50_ms <= result.p90_ms <= result.p99_ms


@needs_wrk
async def test_requests_that_run_out_end_the_round_instead_of_being_sent_again(tmp_path: Path) -> None:
    count = 3000
    write_requests(tmp_path / "requests", paths(count))
    async with serving() as url:
        try:
            result = await run_wrk(url, tmp_path / "requests", connections=CONNECTIONS, window_s=60)
        except LoopFailed as failed:  # a machine that needs less than the ramp for all of them
            assert f"({count} in all)" in str(failed)  # noqa: PT017
        else:
            assert (result.answered, result.ran_out) == (count, True)
    assert Server.seen.total() == len(Server.seen) == count


@needs_wrk
async def test_connections_that_break_fail_the_round(tmp_path: Path) -> None:
    write_requests(tmp_path / "requests", paths(2000))
    async with serving(hang_up_after=500) as url:
        with pytest.raises(LoopFailed, match=r"connections broke|wrk failed"):
            await asyncio.wait_for(
                run_wrk(url, tmp_path / "requests", connections=CONNECTIONS, window_s=0.2), 60
            )


def test_the_rate_is_that_of_the_window_without_ramp_and_end() -> None:
    result = judge(FIGURES)
    assert result.requests_per_s == 400.0
    assert (result.answered, result.refused, result.accepted) == (1000, 30, 970)
    assert result.wrk_cpu_us == 5000.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answered": 993}, "7 requests were not answered"),
        ({"broken": 2}, "2 connections broke"),
        ({"at_end": 100}, "no request was answered within the window"),
        ({"window_s": 0.0}, "no request was answered within the window"),
    ],
)
def test_a_round_with_anything_missing_means_nothing(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LoopFailed, match=message):
        judge({**FIGURES, **changed})
