"""Keeps a set of children running: whoever dies is started again, until told to stop.

Knows nothing of what the children do. A child that dies again and again is started
ever more slowly, never given up: the reason may lie in another one that is coming back.
"""

import asyncio
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from couponsvc.engines.child import Child
from couponsvc.engines.engine import EmbeddedEngine
from couponsvc.engines.errors import EngineError
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks

WATCH_EVERY_S: Final = 0.05
"""How soon a death is noticed."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
LIVED_WELL_S: Final = 10.0
"""A child that lived so long starts again without delay."""
STOP_PATIENCE_S: Final = 8.0
"""An API process waits 5 s for its requests, everything else ends sooner; then SIGKILL."""


class Unit(ABC):
    """One child that is kept running."""

    name: str

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Process id while it runs."""

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """Of the process that ended last, where known."""

    @abstractmethod
    async def start(self) -> None:
        """Start it; may be called again after it died.

        Raises:
            EngineError, OSError: it cannot be started.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Stop in order, within a bound; kill what remains."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL at once."""


class EngineUnit(Unit):
    """An embedded engine."""

    exit_code = None

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.name = engine.name
        self._engine = engine

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._engine.pid

    async def start(self) -> None:
        """See `EmbeddedEngine.start`."""
        await self._engine.start_async()

    async def stop(self) -> None:
        """See `EmbeddedEngine.stop`."""
        await self._engine.stop_async()

    def kill(self) -> None:
        """See `EmbeddedEngine.kill`."""
        self._engine.kill()


class ProcessUnit(Unit):
    """One of our own processes: `python -m couponsvc <command>`."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "couponsvc", *command]
        self._environment = environment
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def exit_code(self) -> int | None:
        """Of the last process; None while it runs."""
        return self._child.exit_code if self._child is not None else None

    async def start(self) -> None:
        """Start it. It is killed with us: each of our processes may be killed at any moment."""
        self._child = Child(
            self._command,
            death_signal=signal.SIGKILL,
            environment={**os.environ, **self._environment},
        )

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after `STOP_PATIENCE_S`."""
        if self._child is None:
            return
        self._child.send(signal.SIGTERM)
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        while self._child.running and time.monotonic() < give_up_at:  # noqa: ASYNC110 - a pid is no event
            await asyncio.sleep(WATCH_EVERY_S / 2)
        self.kill()

    def kill(self) -> None:
        """SIGKILL and reap."""
        if self._child is not None:
            self._child.kill_group()


class Supervisor:
    """Starts units and watches them until `stop`."""

    def __init__(self, on_death: Callable[[Unit, int], None]) -> None:
        """`on_death` hears of every process that ended unasked, with its pid."""
        self._on_death = on_death
        self._watchers: dict[Unit, asyncio.Task[None]] = {}
        self._log = logs.get("up")

    async def start(self, unit: Unit) -> None:
        """Start a unit and keep it running from now on.

        Raises:
            EngineError, OSError: the first start fails; nothing is kept then.
        """
        await unit.start()
        self._watchers[unit] = asyncio.create_task(self._watch(unit), name=f"watch {unit.name}")

    async def stop(self, units: Sequence[Unit]) -> None:
        """Stop these together, in order, and watch them no longer."""
        await end_tasks(*(self._watchers.pop(unit, None) for unit in units))
        await asyncio.gather(*(unit.stop() for unit in units))

    def kill_all(self) -> None:
        """SIGKILL everything at once; `stop` then finds nothing left to wait for."""
        for unit, watcher in self._watchers.items():
            watcher.cancel()
            unit.kill()

    async def _watch(self, unit: Unit) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            started_at = time.monotonic()
            pid = unit.pid
            await self._until_dead(unit)
            lived_s = time.monotonic() - started_at
            backoff_s = BACKOFF_FIRST_S if lived_s > LIVED_WELL_S else min(backoff_s * 2, BACKOFF_MAX_S)
            if pid is not None:  # None: the last start failed, which was logged then
                self._log.warning(
                    "process ended",
                    name=unit.name,
                    pid=pid,
                    exit_code=unit.exit_code,
                    lived_s=round(lived_s, 1),
                    starts_again_in_s=backoff_s,
                )
                self._tell_death(unit, pid)
            await asyncio.sleep(backoff_s)
            await self._start_again(unit)

    def _tell_death(self, unit: Unit, pid: int) -> None:
        try:
            self._on_death(unit, pid)
        except Exception:  # noqa: BLE001 - whatever it is, the unit must be started again
            self._log.exception("death not handled", name=unit.name, pid=pid)

    @staticmethod
    async def _until_dead(unit: Unit) -> None:
        while unit.pid is not None:  # noqa: ASYNC110 - a pid is no event
            await asyncio.sleep(WATCH_EVERY_S)

    async def _start_again(self, unit: Unit) -> None:
        try:
            await unit.start()
        except (EngineError, OSError) as error:
            self._log.error("process does not start", name=unit.name, reason=str(error))
        else:
            self._log.info("process started again", name=unit.name, pid=unit.pid)
