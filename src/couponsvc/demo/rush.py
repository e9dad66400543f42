"""The crowd as the parent sees it: client processes started, told their plan, and followed."""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from couponsvc.demo.plan import CrowdPlan, Progress
from couponsvc.demo.records import Press, read_presses

READY_PATIENCE_S: Final = 30.0
"""Importing Python modules on a busy machine."""


class CrowdFailed(Exception):
    """A client process ended before everybody was answered; nothing can be concluded."""


class Crowd:
    """All client processes; a context that leaves none behind."""

    def __init__(self, processes_count: int) -> None:
        self._wanted_count: Final = processes_count
        self._processes: list[asyncio.subprocess.Process] = []
        self._progress: list[Progress] = []
        self._records: list[Path] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def _start(self) -> None:
        for _ in range(self._wanted_count):
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "couponsvc.demo.crowd",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    start_new_session=True,
                )
            )
        try:
            async with asyncio.timeout(READY_PATIENCE_S):
                ready = [await _reader(process).readline() for process in self._processes]
        except TimeoutError:
            raise CrowdFailed(f"a client process was not ready in {READY_PATIENCE_S:.0f} s") from None
        if not all(ready):
            raise CrowdFailed("a client process ended before it began")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()

    @property
    def requests_count(self) -> int:
        """Requests sent so far."""
        return sum(progress.requests_count for progress in self._progress)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all client processes so far."""
        return sum(progress.cpu_s for progress in self._progress)

    @property
    def outcomes(self) -> Counter[str]:
        """Answers so far."""
        return sum((Counter(progress.outcomes) for progress in self._progress), Counter())

    async def rush(self, plans: Sequence[CrowdPlan]) -> None:
        """Send every process its plan and follow them to their end.

        Raises:
            CrowdFailed: one ended early.
        """
        self._records = [Path(plan.records_path) for plan in plans]
        self._progress = [Progress(0, {}, 0.0, finished=False)] * len(plans)
        for process, plan in zip(self._processes, plans, strict=True):
            assert process.stdin is not None  # noqa: S101
            process.stdin.write(msgspec.json.encode(plan) + b"\n")
        try:
            async with asyncio.TaskGroup() as following:
                for place, process in enumerate(self._processes):
                    following.create_task(self._follow(place, process))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _follow(self, place: int, process: asyncio.subprocess.Process) -> None:
        async for line in _reader(process):
            self._progress[place] = msgspec.json.decode(line, type=Progress)
        if not self._progress[place].finished:
            raise CrowdFailed(f"client process {place + 1} ended early with exit code {await process.wait()}")

    def presses(self) -> list[Press]:
        """What all processes recorded.

        Raises:
            OSError, msgspec.MsgspecError: records are missing or cut off.
        """
        return [press for path in self._records for press in read_presses(path)]


def split_crowd(plan: CrowdPlan, processes_count: int, records_dir: Path) -> list[CrowdPlan]:
    """Divide a whole crowd into one plan per process; nobody is left out."""
    share, rest = divmod(plan.persons_count, processes_count)
    plans, first = [], plan.first_person
    for place in range(processes_count):
        count = share + (place < rest)
        plans.append(
            msgspec.structs.replace(
                plan,
                first_person=first,
                persons_count=count,
                connections_count=max(1, plan.connections_count // processes_count),
                seed=plan.seed + place,
                records_path=str(records_dir / f"crowd-{place + 1}.jsonl"),
            )
        )
        first += count
    return plans


def _reader(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None  # noqa: S101
    return process.stdout
