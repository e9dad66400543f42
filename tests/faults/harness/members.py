"""What a deployment consists of: processes and servers, each of which can be hurt on its own."""

import contextlib
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from couponsvc.engines.child import Child
from couponsvc.engines.engine import EmbeddedEngine
from tests.faults.harness.clocks import tidy_up
from tests.faults.rush import descendants


class Member(ABC):
    """One process, or one server with its children; in a process group of its own."""

    def __init__(self, name: str, kind: str) -> None:
        self.name: Final = name
        self.kind: Final = kind
        self.held = False
        """Stays down once it is dead."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Process id while it runs."""

    @abstractmethod
    async def start(self) -> None:
        """Start it where it does not run.

        Raises:
            EngineError, OSError: it does not start.
        """

    @abstractmethod
    def reap(self) -> None:
        """SIGKILL what remains, and collect it."""

    @property
    @abstractmethod
    def log_path(self) -> Path:
        """What it says."""

    def family(self) -> list[int]:
        """Its process and all below it, looked up: children of Postgres leave its process group."""
        pid = self.pid
        return [] if pid is None else [pid, *(child for child, _ in descendants(pid))]

    def send(self, number: signal.Signals) -> None:
        """A signal to the whole family."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.send(signal.SIGKILL)
        self.reap()


class ProcessMember(Member):
    """One process of ours: `python -m couponsvc <kind>`."""

    def __init__(self, name: str, kind: str, environment: Mapping[str, str], log_path: Path) -> None:
        super().__init__(name, kind)
        self._environment: Final = environment
        self._log_path: Final = log_path
        self._child: Child | None = None
        self.own_environment: dict[str, str] = {}
        """What its next start has beside the others'."""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def log_path(self) -> Path:
        return self._log_path

    @property
    def exit_code(self) -> int | None:
        """Of the process that ended last; None while it runs."""
        return self._child.exit_code if self._child is not None else None

    async def start(self) -> None:
        if self.pid is None:
            self.reap()
            self._child = Child(
                self._command(),
                death_signal=signal.SIGKILL,
                log=self._log_path,
                environment={**self._environment, **self.own_environment},
            )

    def reap(self) -> None:
        if self._child is not None:
            self._child.kill_group()
            tidy_up(self._child.pid)

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", "couponsvc", self.kind]


class EngineMember(Member):
    """A server."""

    def __init__(
        self, name: str, kind: str, engine: EmbeddedEngine, on_start: Callable[[str], Awaitable[None]]
    ) -> None:
        """`on_start` hears the name after each start: some faults outlive a restart."""
        super().__init__(name, kind)
        self.engine: Final = engine
        self._on_start: Final = on_start

    @property
    def pid(self) -> int | None:
        return self.engine.pid

    @property
    def log_path(self) -> Path:
        return self.engine.log_path

    async def start(self) -> None:
        if self.pid is None:
            await self.engine.start_async()
            await self._on_start(self.name)

    def reap(self) -> None:
        self.engine.kill()
