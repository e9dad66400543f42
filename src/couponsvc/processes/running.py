"""How every process of ours runs: settings from the environment, signals, one-line errors."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
import uvloop
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from couponsvc.engines.errors import EngineError
from couponsvc.settings import Settings
from couponsvc.support import logs
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.server_settings import UnsafeServer, refuse_unsafe

EXIT_NOT_SO: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_UNREAD: Final = 128 + signal.SIGPIPE
"""Whoever read our output is gone (`… | head -1`): 141, as a shell reports of every tool. Not 0: what was to
be said was not all said, and a script with `pipefail` may want to know."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

UNREACHABLE: Final = (
    EngineError,
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    RedisConnectionError,
    RedisTimeoutError,
)
"""What says that something needed is not there; ends a process with `EXIT_UNREACHABLE`."""


class ProcessFailed(Exception):
    """A process ends with `exit_code`; the message is one line that says what to do."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        ProcessFailed: a variable is missing or malformed; names every such variable, no value.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(
            f"COUPONSVC_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ProcessFailed(f"settings: {faults}", EXIT_USAGE) from None


def run_process(body: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    """Run a process until its body ends or a stop signal was obeyed.

    Raises:
        ProcessFailed: settings are wrong, or what the process needs cannot be reached.
    """
    settings = load_settings()
    logs.configure(settings.log_format, settings.log_level)

    async def whole() -> None:
        stop = stop_on_signals()
        await refuse_unsafe_servers(settings)
        await body(settings, stop)

    run_loop(whole())


async def refuse_unsafe_servers(settings: Settings) -> None:
    """End the process where a server is set unsafely; say which setting, and to what to change it.

    A server that is away is no reason: whether it is safe is asked again by the reconciler,
    before it blesses the server and a gate decides on it.

    Raises:
        ProcessFailed: a server may lose data.
    """
    redis = open_redis(settings.redis_url, max_connections=1)
    try:
        async with (
            await open_pool(settings.postgres_dsn.get_secret_value(), max_size=1) as pool,
            pool.acquire() as connection,
        ):
            await refuse_unsafe(redis, connection, allow=settings.unsafe_servers)
    except UnsafeServer as error:
        raise ProcessFailed(f"unsafe server: {error}", EXIT_UNREACHABLE) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, RedisError):
        return
    finally:
        await redis.aclose()


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on uvloop; ends the process quietly where nobody reads its output any more.

    Raises:
        ProcessFailed: something cannot be reached.
        SystemExit: with `EXIT_UNREAD`.
    """
    try:
        with ending_unread():
            uvloop.run(main)
    except UNREACHABLE as error:
        raise ProcessFailed(explain(error), EXIT_UNREACHABLE) from error


@contextmanager
def ending_unread() -> Iterator[None]:
    """End the process quietly where nobody reads its output any more; flushes it in the end.

    Raises:
        SystemExit: with `EXIT_UNREAD`.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_unread():  # it is a server's
            raise
        _drop_output()
        sys.exit(EXIT_UNREAD)


def _output_is_unread() -> bool:
    """Whether standard output leads to a pipe or a socket whose other end is closed."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, it is no file, it is closed
        return False
    look = select.poll()
    look.register(output, 0)  # errors and hang-ups are told unasked
    return bool(look.poll(0))


def _drop_output() -> None:
    """Let what is still buffered go nowhere: the interpreter flushes it at its end and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM, SIGINT or SIGHUP sets. Needs a running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    return stop


def explain(error: BaseException) -> str:
    """Say on one line what could not be reached, and what to look at."""
    match error:
        case EngineError():
            return one_line(error)
        case asyncpg.PostgresError() | asyncpg.InterfaceError():
            return f"Postgres refuses: {one_line(error)}; check COUPONSVC_POSTGRES_DSN"
        case RedisConnectionError() | RedisTimeoutError():
            return f"cannot reach Redis: {one_line(error)}; check COUPONSVC_REDIS_URL"
        case _:
            return (
                f"cannot reach a server: {one_line(error)}; check COUPONSVC_POSTGRES_DSN "
                "and COUPONSVC_REDIS_URL"
            )


def one_line(error: BaseException) -> str:
    """What an error says, on one line, without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    return logs.mask_text(text)
