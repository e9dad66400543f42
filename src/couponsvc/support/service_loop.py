"""Loops that a process runs for as long as it lives, each riding out by itself what fails."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import asyncpg
import structlog

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
"""A server that is back is noticed within this."""

SHORT_S: Final = 0.1
"""A pause up to this is not cut short by a stop: watching for it would cost more than the pause's turn."""

AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a pooled connection that broke in the middle of being reset
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)
"""What passes when Postgres is back or less busy. Anything else is told with its stack."""

_log = structlog.get_logger("service_loop")


class Trouble:
    """What a loop suffers from: told once when it begins or changes, and once when it is over."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._told = ""
        self._next_s = BACKOFF_FIRST_S

    def over(self) -> None:
        """A turn went well."""
        self._next_s = BACKOFF_FIRST_S
        if self._told:
            self._told = ""
            _log.info("goes on", loop=self._name)

    def pause_s(self, error: BaseException) -> float:
        """Tell of an error; how long to wait before the next turn, longer each time, with jitter."""
        kind = type(error).__name__
        if kind != self._told:
            self._told = kind
            if isinstance(error, AWAY):
                _log.warning("cannot go on", loop=self._name, error=kind)
            else:
                _log.error("turn failed", loop=self._name, error=kind, exc_info=error)
        step = self._next_s
        self._next_s = min(BACKOFF_MAX_S, step * 2)
        return step * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, guards nothing


async def repeat(
    name: str,
    turn: Callable[[], Awaitable[float]],
    stop: asyncio.Event,
    *,
    on_error: Callable[[], None] = lambda: None,
) -> None:
    """Take turns until `stop` is set, whatever they raise.

    Args:
        name: of the loop, for the log.
        turn: one turn; returns how long to pause after it, in seconds.
        stop: set it to end; a turn that runs is waited for.
        on_error: hears of every turn that failed, for a counter.
    """
    trouble = Trouble(name)
    while not stop.is_set():
        try:
            pause_s = await turn()
            trouble.over()
        except Exception as error:  # noqa: BLE001 - one failing loop must not end the others
            on_error()
            pause_s = trouble.pause_s(error)
        await pause(stop, pause_s)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, unless it is time to stop; always lets others run."""
    if seconds <= SHORT_S:
        await asyncio.sleep(max(0.0, seconds))
        return
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
