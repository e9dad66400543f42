"""Where nobody reads what a command prints (`… | head -1`), it ends quietly, as every tool of Unix does."""

import asyncio
import os
import subprocess
import sys

import pytest

from couponsvc.processes.running import EXIT_UNREACHABLE, EXIT_UNREAD, ProcessFailed, run_loop
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from tests.brokers import add_events
from tests.conftest import MASTER_KEY


@pytest.fixture
def dsn(database: str) -> str:
    async def fill() -> None:
        async with await open_pool(database) as pool:
            await add_events(pool, 3)

    asyncio.run(fill())
    return database


@pytest.mark.parametrize(
    "arguments",
    ["events tail --after 0", "events tail --follow --json", "events deliveries", "partner list", "migrate"],
)
def test_a_command_whose_reader_is_gone_says_nothing_and_ends_as_the_others_do(
    dsn: str, arguments: str
) -> None:
    done = unread(arguments.split(), {"COUPONSVC_POSTGRES_DSN": dsn, "COUPONSVC_MASTER_KEY": MASTER_KEY})
    assert (done.returncode, done.stderr) == (EXIT_UNREAD, "")


def test_a_check_that_nobody_reads_ends_as_the_others_do(settings: Settings) -> None:
    engines = {
        "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "COUPONSVC_REDIS_URL": settings.redis_url,
        "COUPONSVC_MASTER_KEY": MASTER_KEY,
    }
    done = unread(["check"], engines)
    assert (done.returncode, done.stderr) == (EXIT_UNREAD, "")


def unread(arguments: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a command whose standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does once it has enough
    with os.fdopen(writer, "w") as pipe:
        return subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "couponsvc", *arguments],
            stdout=pipe,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
            timeout=30,
            check=False,
        )


def test_a_pipe_that_breaks_elsewhere_is_a_server_that_cannot_be_reached() -> None:
    async def talk() -> None:
        raise BrokenPipeError

    with pytest.raises(ProcessFailed, match="cannot reach a server") as failed:
        run_loop(talk())
    assert failed.value.exit_code == EXIT_UNREACHABLE
