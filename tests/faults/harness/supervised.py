"""Keeps a deployment's members running, unless they are held down; and hurts them by name."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from couponsvc.engines.errors import EngineError
from couponsvc.support.ending import end_tasks
from tests.faults.harness.members import Member
from tests.faults.harness.proxy import ProxyFailed

RESTART_AFTER_S: Final = 0.2
"""As a supervisor of a real deployment: soon, and not at once."""
LOOK_EVERY_S: Final = 0.05
MAY_PASS: Final = (EngineError, OSError, RedisError, subprocess.SubprocessError, ProxyFailed)
"""Why a start fails while another fault lasts, or while the next one kills what was just started."""


class Supervised:
    """Members by name. What dies is started again until `hold` says otherwise."""

    def __init__(self) -> None:
        self._members: Final[dict[str, Member]] = {}
        self._dead_since: Final[dict[str, float]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._starting: Final[dict[str, asyncio.Task[None]]] = {}
        self.restarts: Final[Counter[str]] = Counter()
        """How often each was started again by supervision."""

    def members(self, kind: str = "") -> list[str]:
        """Names of a kind; of all without one."""
        return [member.name for member in self._members.values() if kind in {"", member.kind}]

    def pid(self, name: str) -> int | None:
        """Process id while it runs."""
        return self._members[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL the process and every one below it. Supervision starts it again unless it is held."""
        self._members[name].kill()

    def pause(self, name: str) -> None:
        """SIGSTOP it, with all its children."""
        self._members[name].send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT it, whoever stopped it (a kill point, too)."""
        self._members[name].send(signal.SIGCONT)

    def hold(self, name: str) -> None:
        """Keep it down once it dies."""
        self._members[name].held = True

    def release(self, name: str) -> None:
        """Let supervision start it again."""
        self._members[name].held = False

    def release_all(self) -> None:
        """Nothing is held or paused any more."""
        for name in self._members:
            self.release(name)
            self.resume(name)

    def log_paths(self) -> list[Path]:
        """Of every member."""
        return [member.log_path for member in self._members.values()]

    async def down(self, name: str) -> None:
        """Hold it and kill it, and wait for a start that was on its way."""
        self.hold(name)
        if (starting := self._starting.get(name)) is not None:
            await asyncio.wait([starting])
        self.kill(name)

    async def up(self, name: str) -> None:
        """Release it and return when it was started; a server then answers.

        Raises:
            EngineError, OSError: it does not start.
        """
        self.hold(name)  # so that supervision does not start it as well
        if (starting := self._starting.get(name)) is not None:
            await asyncio.wait([starting])
        await self._members[name].start()
        self.release(name)

    def _supervise(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name="supervision")

    async def _stop_supervising(self) -> None:
        watcher, self._watcher = self._watcher, None
        await end_tasks(watcher, *self._starting.values())

    async def _watch(self) -> None:
        while True:
            now = time.monotonic()
            for member in self._members.values():
                if member.pid is not None or member.held or member.name in self._starting:
                    self._dead_since.pop(member.name, None)
                elif now - self._dead_since.setdefault(member.name, now) >= RESTART_AFTER_S:
                    self._start_again(member)
            await asyncio.sleep(LOOK_EVERY_S)

    def _start_again(self, member: Member) -> None:
        async def start() -> None:
            # A server may refuse to start while a fault lasts; it is tried again.
            with contextlib.suppress(*MAY_PASS):
                await member.start()

        self.restarts[member.name] += 1
        task = asyncio.create_task(start(), name=f"start {member.name}")
        self._starting[member.name] = task
        task.add_done_callback(lambda _: self._starting.pop(member.name, None))
