"""Start a contender's process on a free port, wait until it listens, and be rid of it afterwards."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.contender import Running
from couponsvc.engines.child import Child
from couponsvc.engines.engine import HOST, free_port

CHECKOUT: Final = Path(__file__).parents[2]
START_S: Final = 20.0
STOP_S: Final = 5.0
"""For requests in flight; what takes longer is killed."""
POLL_S: Final = 0.02
BACKLOG_COUNT: Final = 2048
LOG_TAIL_CHARS: Final = 800


class ContenderFailed(Exception):
    """A contender did not build, start or stay; the message ends with what it said last."""


@asynccontextmanager
async def scratch(directory: Path) -> AsyncIterator[Path]:
    """A directory inside `directory` that goes away with everything in it."""
    path = Path(tempfile.mkdtemp(prefix="contender-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def serving(
    command: Sequence[str | Path], port: int, place: Path, environment: Mapping[str, str]
) -> AsyncIterator[Running]:
    """Run one server for as long as the block lasts.

    Args:
        command: It must listen on `port` of 127.0.0.1, stay in the foreground, and end on SIGTERM.
        port: From `free_port`.
        place: Its working directory and where its output goes.
        environment: On top of ours.

    Raises:
        ContenderFailed: it ended or does not listen within `START_S`.
        OSError: the command cannot be executed.
    """
    log = place / "output.log"
    child = Child(
        command,
        death_signal=signal.SIGTERM,
        log=log,
        environment={**os.environ, **environment, "PORT": str(port)},
        cwd=place,
    )
    try:
        await _until_listening(child, port, log)
        yield Running(f"http://{HOST}:{port}", {"api": [child.pid]})
        if not child.running:
            raise ContenderFailed(f"it ended with exit code {child.exit_code}: {_tail(log)}")
    finally:
        child.send(signal.SIGTERM)
        give_up_at = time.monotonic() + STOP_S
        try:
            while child.running and time.monotonic() < give_up_at:  # noqa: ASYNC110 - a process
                await asyncio.sleep(POLL_S)
        finally:
            child.kill_group()


@asynccontextmanager
async def uvicorn_serving(
    app: str, directory: Path, environment: Mapping[str, str], *, factory: bool
) -> AsyncIterator[Running]:
    """Run an ASGI application of this package in one uvicorn process, tuned as ours is.

    Args:
        app: `module:attribute` below `bench.contenders`.
        directory: Where it may keep its log meanwhile.
        environment: On top of ours.
        factory: Is the attribute a function that makes the application (and needs its lifespan)?
    """
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"bench.contenders.{app}", "--app-dir", str(CHECKOUT)]
    command += ["--host", HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    command += ["--no-access-log", "--no-proxy-headers", "--no-server-header", "--no-date-header"]
    command += ["--log-level", "warning", "--backlog", str(BACKLOG_COUNT)]
    command += ["--timeout-graceful-shutdown", str(int(STOP_S) - 1)]
    command += ["--factory", "--lifespan", "on"] if factory else ["--lifespan", "off"]
    async with scratch(directory) as place, serving(command, port, place, environment) as running:
        yield running


async def _until_listening(child: Child, port: int, log: Path) -> None:
    give_up_at = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((HOST, port), POLL_S).close()
        except OSError:
            if not child.running:
                raise ContenderFailed(f"it ended with exit code {child.exit_code}: {_tail(log)}") from None
            if time.monotonic() > give_up_at:
                raise ContenderFailed(f"it does not listen after {START_S:.0f} s: {_tail(log)}") from None
            await asyncio.sleep(POLL_S)
        else:
            return


def _tail(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-LOG_TAIL_CHARS:].strip() or "it said nothing"
