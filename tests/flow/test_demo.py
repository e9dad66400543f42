"""`couponsvc demo`, small: a real rush end to end, its exit codes, and that it leaves nothing behind."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers import short_directory

pytestmark = pytest.mark.faults  # seven whole services, started and stopped as processes

PERSONS = 400
TIMEOUT_S = 100.0


@contextlib.asynccontextmanager
async def demo(temporary: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running demo whose temporary files all lie in `temporary`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "couponsvc",
        "demo",
        "--persons",
        str(PERSONS),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """Everything said up to a line with `text`."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(TIMEOUT_S):
        while text not in said:
            line = await process.stdout.readline()
            assert line, said
            said += line.decode()
    return said


async def read_all(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def processes_naming(directory: Path) -> list[str]:
    """Command lines of living processes that work in `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if str(directory) in words:
                found.append(words)
    return found


def assert_nothing_left(temporary: Path) -> None:
    assert processes_naming(temporary) == []
    assert [path for path in temporary.iterdir() if path.name.startswith("couponsvc-demo-")] == []


async def test_a_rush_keeps_every_promise_and_leaves_nothing_behind() -> None:
    with short_directory() as temporary:
        async with demo(temporary) as process:
            code, said = await read_all(process)
        assert code == 0, said
        for promise in ("never one too many", "never one too few", "confirmed means for ever"):
            assert re.search(rf"{promise} +│ kept: ", said), said
        assert re.search(r"one request, one answer +│ kept: ", said), said
        assert re.search(r"couponsvc check +│ zero drift", said), said
        assert re.search(r"53 of 53 issued, in", said), said
        for behaviour in ("issued", "repeated", "lost", "sold_out", "not_started"):
            assert behaviour in said
        assert_nothing_left(temporary)


async def test_a_subscribed_partner_ends_with_our_ledger_though_it_and_the_relay_are_killed() -> None:
    with short_directory() as temporary:
        async with demo(temporary, "--partner", "--kill") as process:
            code, said = await read_all(process)
        assert code == 0, said
        assert re.search(r"the partner knows it all +│ kept: 76 vouchers in \d+ events", said), said
        killed = re.search(r"killed: relay (\d+) times, partner (\d+)", said)
        assert killed, said
        assert int(killed[1]) + int(killed[2]) > 0
        assert_nothing_left(temporary)


@pytest.mark.parametrize(
    ("stop", "at"),
    [
        (signal.SIGINT, "persons come from"),
        (signal.SIGTERM, "starting engines"),
        (signal.SIGINT, "asking again"),
    ],
)
async def test_interrupted_at_any_time_it_leaves_nothing_behind(stop: signal.Signals, at: str) -> None:
    with short_directory() as temporary:
        async with demo(temporary) as process:
            await read_until(process, at)
            await asyncio.sleep(0.2)
            process.send_signal(stop)
            code, said = await read_all(process)
        assert code == 130, said
        assert_nothing_left(temporary)


async def test_kept_it_serves_on_its_data_and_a_second_demo_is_told_so() -> None:
    with short_directory() as temporary:
        data_dir = temporary / "kept"
        async with demo(temporary, "--keep", "--data-dir", str(data_dir)) as process:
            said = await read_until(process, "try: curl")
            assert "serving on http://127.0.0.1:" in said
            async with demo(temporary, "--data-dir", str(data_dir)) as second:
                code, told = await read_all(second)
            assert code == 3
            assert "in use by another couponsvc" in told
            process.send_signal(signal.SIGINT)
            code, _ = await read_all(process)
        assert code == 0
        assert (data_dir / "credentials.json").exists()
        assert_nothing_left(temporary)
