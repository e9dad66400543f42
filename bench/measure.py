"""One round of one row: requests made, sent, finished, judged, and what it all cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from bench import open_loop
from bench.closed_loop import RAMP_S, LoopResult, run_wrk
from bench.cpu import per_request, read_cpu
from bench.open_loop import OpenLoopResult
from bench.profiling import Profiler
from bench.request_file import write_requests
from bench.row import Row

FIRST_COUNT: Final = 16_000
"""Requests of the warm-up; if they run out, it was long enough."""
WARM_UP_S: Final = 1.5
SPARE: Final = 1.3
"""How much faster than its fastest a row may get without running out of requests."""
ENOUGH: Final = 0.6
"""A window cut short, because requests ran out, counts if it lasted this share of what was asked for."""
ATTEMPTS_COUNT: Final = 3
OPEN_SHARE: Final = 0.5
"""Of its own saturation: where the open loop drives a row."""
OPEN_PATIENCE_S: Final = 5.0
FIRST_REFUSED_STATUS: Final = 400


class RowFailed(RuntimeError):
    """What this row says cannot be used; the message says why."""


@dataclass(frozen=True)
class Round:
    """One closed loop of one row, and the CPU it cost per request, by kind of process."""

    loop: LoopResult
    cpu_us: Mapping[str, float]

    @property
    def cpu_sum_us(self) -> float:
        """All processes of the row together; the generator is none of them."""
        return sum(self.cpu_us.values())

    @property
    def wrk_us(self) -> float:
        """The generator's CPU per request."""
        return self.loop.wrk_cpu_us / self.loop.answered


@dataclass
class Measured:
    """What is known of a row by now. `failure` ends its part in the run."""

    row: Row
    rounds: list[Round] = field(default_factory=list)
    open_loop: OpenLoopResult | None = None
    violations: list[str] | None = None
    failure: str | None = None

    @property
    def requests_per_s(self) -> float:
        """Median of the rounds; 0 before the first."""
        return median([entry.loop.requests_per_s for entry in self.rounds]) if self.rounds else 0.0


class Bench:
    """Carries out loops on rows, one at a time.

    Args:
        directory: For the files of requests.
        connections: Of every closed loop; the open loop has as many.
    """

    def __init__(self, directory: Path, connections: int) -> None:
        self._path: Final = directory / "requests"
        self._connections: Final = connections

    async def warm_up(self, measured: Measured) -> float:
        """Prepare a row and drive it for a moment, uncounted; its rate.

        Raises:
            RowFailed, LoopFailed, ProcessGone: see `closed`.
        """
        await measured.row.prepare()
        return (await self._loop(measured.row, FIRST_COUNT, WARM_UP_S)).loop.requests_per_s

    async def closed(
        self, measured: Measured, rate_per_s: float, window_s: float, profiler: Profiler | None = None
    ) -> Round:
        """One round with new requests, as many as a row of that rate may need.

        Raises:
            RowFailed: an answer is not what it should be, or requests ran out again and again.
            LoopFailed: requests were not answered.
            ProcessGone: a process of the row ended.
        """
        for _ in range(ATTEMPTS_COUNT):
            wanted_count = math.ceil(rate_per_s * SPARE * (window_s + RAMP_S)) + 2 * self._connections
            found = await self._loop(measured.row, wanted_count, window_s, profiler)
            if not found.loop.ran_out or found.loop.window_s >= ENOUGH * window_s:
                return found
            rate_per_s = max(rate_per_s * SPARE, found.loop.requests_per_s)
        raise RowFailed(f"requests ran out after {found.loop.window_s:.1f} s; it gets faster and faster")

    async def _loop(
        self, row: Row, wanted_count: int, window_s: float, profiler: Profiler | None = None
    ) -> Round:
        write_requests(self._path, row.take_requests(wanted_count))
        await row.before_loop()
        before = read_cpu(row.roots)
        if profiler is not None:
            profiler.start(row, window_s)
        loop = await run_wrk(row.url, self._path, connections=self._connections, window_s=window_s)
        await row.settle()
        after = read_cpu(row.roots)
        _raise_if(await row.judge_loop(loop.answered, loop.refused))
        return Round(loop, per_request(before, after, loop.answered))

    async def opened(self, measured: Measured, window_s: float) -> OpenLoopResult:
        """Drive a row at half of its own rate, by arrivals at random, and take its latencies.

        Raises:
            RowFailed: an answer is not what it should be, or is missing.
            RuntimeError: the generator failed.
        """
        row, rate_per_s = measured.row, max(1.0, measured.requests_per_s * OPEN_SHARE)
        wanted_count = len(open_loop.due_times(rate_per_s, window_s, poisson=True))
        write_requests(self._path, row.take_requests(wanted_count))
        await row.before_loop()
        result = await open_loop.run_apart(
            row.url,
            self._path,
            rate_per_s=rate_per_s,
            duration_s=window_s,
            connections=self._connections,
            poisson=True,
            patience_s=OPEN_PATIENCE_S,
        )
        await row.settle()
        if result.unanswered:
            raise RowFailed(f"open loop: {result.unanswered} of {result.due} requests were not answered")
        refused = sum(count for status, count in result.answered.items() if status >= FIRST_REFUSED_STATUS)
        _raise_if(await row.judge_loop(result.due, refused))
        return result


def _raise_if(wrong: list[str]) -> None:
    if wrong:
        raise RowFailed("; ".join(wrong))
