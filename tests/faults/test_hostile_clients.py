"""Clients that want to harm: nothing of theirs lasts, grows, is logged, or reaches another's answer."""

import asyncio
import contextlib
import os
import re
import resource
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from couponsvc import limits
from couponsvc.client import GrabClient
from tests.faults.raw_http import LOOK, RawConnection, connect, connection, grab_bytes
from tests.faults.rush import Rush, Up, run_check, running_up
from tests.faults.smuggling import READ, REFUSED

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("hostile clients")]

CANARY: Final = "canary-of-a-stranger"
GROWTH_MAX_KB: Final = 12_000
"""What an attack may add to the API's memory for good: allocators keep some of what was in use once."""
GRABS_PER_ROUND: Final = 400


@pytest.fixture(scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with running_up(tmp_path_factory.mktemp("hostile") / "data", "--workers", "1") as up:
        await asyncio.to_thread(Rush(up, quantity=100_000, persons=0).define)
        yield up
        check = await asyncio.to_thread(run_check, up.data_dir)
        assert check.returncode == 0, check.stdout + check.stderr
        logs = [up.data_dir.parent / f"{up.data_dir.name}.log", *up.data_dir.glob("*.log")]
        assert [path.name for path in logs if CANARY in path.read_text("utf-8", "replace")] == []


def bearer(up: Up) -> str:
    return f"Authorization: Bearer {up.credentials['partner']['token']}"


def memory_kb(up: Up) -> int:
    (pid,) = up.wait_for("api")
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


async def ended(up: Up) -> dict[str, int]:
    """Connections that the service ended, by reason."""
    async with connection(up.url) as raw:
        await raw.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        text = (await raw.closed()).decode()
    lines = re.findall(r'connections_ended_total\{reason="(\w+)"\} (\d+)', text)
    return {reason: int(count) for reason, count in lines}


# --- what is read -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", REFUSED)
async def test_what_could_be_read_otherwise_is_refused_with_all_that_follows(up: Up, name: str) -> None:
    async with connection(up.url) as raw:
        await raw.send(REFUSED[name] + LOOK)
        answers = await raw.answers()
    assert [answer.status for answer in answers] == [400]
    assert b'"code":"malformed_request"' in answers[0].body
    assert b"connection: close" in answers[0].head


@pytest.mark.parametrize("name", READ)
async def test_what_is_legal_is_answered_and_so_is_the_request_behind_it(up: Up, name: str) -> None:
    async with connection(up.url) as raw:
        await raw.send(READ[name] + LOOK)
        first, second = await raw.answer(), await raw.answer()
    assert first.status in {200, 401, 404}
    assert (second.status, second.body) == (200, b'{"status":"alive"}')


async def test_a_trailer_proves_nothing(up: Up) -> None:
    head, _, body = grab_bytes("rush", CANARY, "trailer-1", "Transfer-Encoding: chunked").partition(
        b"\r\n\r\n"
    )
    head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    chunks = b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), body, bearer(up).encode())
    async with connection(up.url) as raw:
        await raw.send(head + b"\r\n\r\n" + chunks)
        assert (await raw.answer()).status == 401


async def test_another_protocol_is_not_spoken_and_the_request_answered(up: Up) -> None:
    async with connection(up.url) as raw:
        await raw.send(
            b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + LOOK
        )
        assert [answer.status for answer in await raw.answers()] == [200]


# --- how much of it ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 20_000_000,
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * limits.HEAD_MAX_BYTES + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * limits.HEADERS_MAX_COUNT + b"\r\n",
        b"GET /" + CANARY.encode() * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        grab_bytes("rush", "p", "n", *(f"X-{place}: b" for place in range(limits.HEADERS_MAX_COUNT))),
        grab_bytes("rush", "p", "n", "X-A: " + "a" * limits.HEAD_MAX_BYTES),
    ],
    ids=["endless", "too large", "endlessly many", "too many", "target", "many of a grab", "large grab"],
)
async def test_a_head_too_large_is_refused_and_not_kept(up: Up, head: bytes) -> None:
    before_kb = memory_kb(up)
    async with connection(up.url) as raw:
        await raw.send(head)
        answers = await raw.answers()
    assert [answer.status for answer in answers] == [431]
    assert b'"code":"head_too_large"' in answers[0].body
    assert memory_kb(up) - before_kb < GROWTH_MAX_KB


@pytest.mark.parametrize("chunk", [b"1;a=%b\r\na\r\n" % (b"b" * 1_000), b"a" * 65_536])
async def test_a_body_ends_somewhere(up: Up, chunk: bytes) -> None:
    """Chunk extensions are no part of it, and what follows a 413 is thrown away; neither goes on for ever."""
    coding = b"Transfer-Encoding: chunked" if chunk[:1] == b"1" else b"Content-Length: 100000000"
    head = b"POST /v1/drops/rush/grabs HTTP/1.1\r\nHost: a\r\n" + coding + b"\r\n\r\n"
    before_kb = memory_kb(up)
    async with connection(up.url) as raw:
        await raw.send(head)
        for _ in range(3 * limits.MESSAGE_MAX_BYTES // len(chunk)):
            if raw.transport.is_closing():
                break
            await raw.send(chunk)
        assert [answer.status for answer in await raw.answers()] in ([413], [])  # [] where TCP was reset
    assert memory_kb(up) - before_kb < GROWTH_MAX_KB


async def test_requests_are_not_queued_without_end(up: Up) -> None:
    before_kb = memory_kb(up)
    async with connection(up.url) as raw:
        sending = asyncio.create_task(raw.send(LOOK * 100_000))
        statuses = [answer.status for answer in await raw.answers()]
        await sending
    assert statuses[-1] == 503
    assert set(statuses[:-1]) == {200}
    assert len(statuses) >= limits.PIPELINED_MAX_COUNT
    assert memory_kb(up) - before_kb < GROWTH_MAX_KB


@pytest.mark.parametrize("behind_s", [None, 0.0, 0.002])
async def test_what_is_refused_is_answered_after_the_grab_before_it(up: Up, behind_s: float | None) -> None:
    number = f"before-garbage-{behind_s}"
    grab = grab_bytes("rush", number, number, bearer(up))
    async with connection(up.url) as raw:
        if behind_s is None:
            await raw.send(grab + REFUSED["two lengths"])
        else:
            await raw.send(grab)
            await asyncio.sleep(behind_s)
            await raw.send(REFUSED["two lengths"])
        first, last = await raw.answers()
    assert (first.status, last.status) == (201, 400)
    assert number.encode() in first.body


# --- how slowly -------------------------------------------------------------------------------
async def test_nobody_is_waited_for_without_end_while_others_are_served(up: Up) -> None:
    """The long waits of this file, all at once, with a good client beside them."""
    done = asyncio.Event()

    async def good_client() -> int:
        count = 0
        async with GrabClient(up.url, up.key) as client:
            while not done.is_set():
                answer = await client.grab("rush", f"good-{count}", f"good-{count}")
                assert answer.status == 201
                assert answer.voucher.person_token == f"good-{count}"
                count += 1
                await asyncio.sleep(0.02)
        return count

    good = asyncio.create_task(good_client())
    grab = grab_bytes("rush", CANARY, "slow-1", bearer(up))
    drip = b"POST /v1/drops/rush/grabs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    try:
        await asyncio.gather(
            is_slow(up, 408, limits.HEAD_TIMEOUT_S, b"GET /livez HTTP/1.1\r\nX-A: ", b"a"),
            is_slow(up, 408, limits.HEAD_TIMEOUT_S, grab[:40], b""),
            is_slow(up, 0, limits.HEAD_TIMEOUT_S, b"\r\n", b"\r\n"),
            is_slow(up, 408, limits.HEAD_TIMEOUT_S, LOOK + LOOK[:-2], b"X", before=1),
            is_slow(up, 408, limits.BODY_TIMEOUT_S, grab[:-60], b" "),
            is_slow(up, 408, limits.BODY_TIMEOUT_S, grab[:-60], b""),
            is_slow(up, 408, limits.BODY_TIMEOUT_S, drip, b"1\r\na\r\n"),
            nothing_is_read(up),
            a_stream_ends_with_its_client(up),
        )
    finally:
        done.set()
    assert await good > 100
    assert (await ended(up)).keys() >= {"slow_head", "slow_body", "unread", "nothing_asked"}


async def is_slow(
    up: Up, status: int, timeout_s: float, begin: bytes, drop: bytes, *, before: int = 0
) -> None:
    """Begin a request and go on with it, a drop per 0.8 s."""
    async with connection(up.url) as raw:
        began = time.monotonic()
        await raw.send(begin)
        answers = asyncio.create_task(raw.answers(timeout_s + 10))
        while not answers.done() and time.monotonic() - began < timeout_s + 5:
            await asyncio.wait([answers], timeout=0.8)
            if drop and not answers.done():
                await raw.send(drop)
        took_s = time.monotonic() - began
        statuses = [answer.status for answer in await answers]
    assert statuses == [200] * before + ([status] if status else [])
    assert timeout_s - 0.5 < took_s < timeout_s + 4


async def nothing_is_read(up: Up) -> None:
    """Ask for more than the buffers between us hold, and never read."""
    raw = await connect(up.url, receive_buffer_bytes=4_096)
    await raw.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * limits.PIPELINED_MAX_COUNT)
    began = time.monotonic()
    while not (await ended(up)).get("unread"):
        assert time.monotonic() - began < limits.UNREAD_TIMEOUT_S + 5
        await asyncio.sleep(0.5)
    assert time.monotonic() - began > limits.UNREAD_TIMEOUT_S - 1
    raw.abort()


async def a_stream_ends_with_its_client(up: Up) -> None:
    """Also where another request is queued behind it."""
    raw = await connect(up.url)
    await raw.send(f"GET /v1/events/stream HTTP/1.1\r\nHost: a\r\n{bearer(up)}\r\n\r\n".encode())
    assert (await raw.answer()).status == 200
    await raw.send(LOOK)
    await until(up, r"couponsvc_feed_waiting 1\.0", 5)
    raw.abort()
    await until(up, r"couponsvc_feed_waiting 0\.0", 30)


async def until(up: Up, expected: str, timeout_s: float) -> None:
    give_up_at = time.monotonic() + timeout_s
    while True:
        async with connection(up.url) as raw:
            await raw.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            if re.search(expected, (await raw.closed()).decode()):
                return
        assert time.monotonic() < give_up_at, expected
        await asyncio.sleep(0.3)


async def test_tcp_asks_whether_a_silent_client_still_exists(up: Up) -> None:
    async with connection(up.url) as raw:
        await raw.send(LOOK)
        await raw.answer()
        ends = [f"{port:04X}" for port in (urlsplit(up.url).port or 0, raw.own_port)]  # the server's first
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        (timer,) = [row[5] for row in rows if [end[-4:] for end in row[1:3]] == ends]
    kind, _, jiffies = timer.partition(":")
    assert kind == "02", "a keepalive timer runs on the accepted socket"
    assert int(jiffies, 16) / os.sysconf("SC_CLK_TCK") <= limits.TCP_IDLE_S


# --- how many ---------------------------------------------------------------------------------
async def latencies(up: Up, prefix: str) -> list[float]:
    """Seconds of grabs of a good client on a few connections, one after another on each."""
    taken: list[float] = []

    async def some(client: GrabClient, place: int) -> None:
        for number in range(GRABS_PER_ROUND // 4):
            began = time.perf_counter()
            answer = await client.grab("rush", f"{prefix}-{place}-{number}", f"{prefix}-{place}-{number}")
            taken.append(time.perf_counter() - began)
            assert answer.status == 201

    async with GrabClient(up.url, up.key, connections_max_count=4) as client:
        await asyncio.gather(*(some(client, place) for place in range(4)))
    return taken


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


async def test_two_thousand_idle_connections_disturb_nobody(up: Up) -> None:
    """Each round with them lies between rounds without; the least disturbed by the machine count."""
    alone, beside = [], []
    await latencies(up, "warm")
    for turn in range(5):
        alone.append(p99(await latencies(up, f"alone-{turn}")))
        idle = await asyncio.gather(*(connect(up.url) for _ in range(2_000)))
        for raw in idle[::2]:
            await raw.send(b"GET /livez HTTP/1.1\r\nX-A: ")
        beside.append(p99(await latencies(up, f"beside-{turn}")))
        for raw in idle:
            raw.abort()
        if turn and min(beside) <= min(alone) * 1.2:
            break
    print(f"p99 alone {min(alone) * 1e3:.2f} ms, beside 2,000 idle ones {min(beside) * 1e3:.2f} ms")  # noqa: T201
    assert min(beside) <= min(alone) * 1.2, (alone, beside)


async def test_where_there_is_no_room_the_idle_yield_and_strangers_first(tmp_path: Path) -> None:
    async with running_up(tmp_path / "data", "--workers", "1") as up:
        await asyncio.to_thread(Rush(up, quantity=1_000, persons=0).define)
        room = 100
        files = limits.CONNECTIONS_SPARE_FILES_COUNT + room
        resource.prlimit(up.process.pid, resource.RLIMIT_NOFILE, (files, files))  # the next API has it
        (old,) = up.wait_for("api")
        os.kill(old, signal.SIGKILL)
        await wait_until(lambda: up.pids("api") not in ([], [old]), "another API process runs")
        await wait_until(lambda: answers(up), "it answers")

        async with connection(up.url) as partner:
            await partner.send(grab_bytes("rush", "first", "first", bearer(up)))
            assert (await partner.answer()).status == 201
            crowd = [await connect(up.url) for _ in range(3 * room)]
            await asyncio.sleep(0.5)
            await partner.send(grab_bytes("rush", "first", "first", bearer(up)))
            assert (await partner.answer()).status == 200, "who was served stays"
            async with connection(up.url) as newcomer:
                await newcomer.send(grab_bytes("rush", "second", "second", bearer(up)))
                assert (await newcomer.answer()).status == 201, "who comes now is served"
        told = await asyncio.gather(*(left(raw) for raw in crowd))
        assert told.count(True) >= 2 * room
        assert (await ended(up))["evicted"] >= 2 * room


async def left(raw: RawConnection) -> bool:
    try:
        await raw.closed(0.05)
    except TimeoutError:
        return False
    finally:
        raw.abort()
    return True


async def answers(up: Up) -> bool:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with connection(up.url) as raw:
            await raw.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
            return (await raw.answer(5)).status == 200
    return False


async def wait_until(claim: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    give_up_at = time.monotonic() + 30
    while True:
        holds = claim()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < give_up_at, what
        await asyncio.sleep(0.05)
