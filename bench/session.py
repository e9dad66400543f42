"""A run: everything started and alive, rounds interleaved, invariants checked at the end."""

import sys
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.closed_loop import LoopFailed
from bench.contender import Contender
from bench.cpu import ProcessGone
from bench.engines import EnginePool
from bench.measure import Bench, Measured, RowFailed
from bench.ours import OurRow, our_rows
from bench.profiling import Profiler
from bench.row import AlternativeRow, Row
from bench.service import Service
from couponsvc.demo.stack import Stack

FAILURES: Final = (RowFailed, LoopFailed, ProcessGone, RuntimeError, OSError, AssertionError)
"""What ends a row and not the run. Assertions are about how a row's drop was prepared."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        rounds: Closed loops per row, each `window_s` long.
        connections: Of every loop.
        workers: API processes of ours.
        open_window_s: How long the open loop of a row lasts; 0 leaves it out.
        profiler: Gets an extra, uncounted round of each of our rows.
    """

    rounds: int
    window_s: float
    connections: int
    workers: int = 1
    open_window_s: float = 0.0
    profiler: Profiler | None = None


@dataclass
class Outcome:
    """Every row that ran, in the table's order, and why others did not."""

    measured: list[Measured]
    skipped: dict[str, str] = field(default_factory=dict)


_BEGAN: Final = time.monotonic()


def say(line: str) -> None:
    """Progress, beside the table that goes to stdout; with the seconds since the start."""
    print(f"{time.monotonic() - _BEGAN:5.0f} s  {line}", file=sys.stderr, flush=True)


async def measure(
    plan: Plan, alternatives: Sequence[Contender], ours: Collection[str], directory: Path
) -> Outcome:
    """Start rows, interleave their rounds, check what must hold, stop everything.

    Args:
        plan: How long, how often.
        alternatives: Contenders to start.
        ours: Names of our rows to measure; empty: `couponsvc up` is not started.
        directory: For data and requests; the engines' account must be able to enter it.

    Raises:
        StackFailed, EngineError: our own service or an engine does not start.
    """
    async with _started(plan, alternatives, ours, directory) as (outcome, service):
        await _run_rounds(plan, outcome.measured, Bench(directory, plan.connections))
        await _check(outcome.measured, service)
    return outcome


@asynccontextmanager
async def _started(
    plan: Plan, alternatives: Sequence[Contender], ours: Collection[str], directory: Path
) -> AsyncIterator[tuple[Outcome, Service | None]]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(EnginePool(directory))
        rows: list[Row] = []
        skipped: dict[str, str] = {}
        for contender in alternatives:
            reason = contender.missing()
            if reason is not None:
                skipped[contender.name] = reason
                say(f"skipped {contender.name}: {reason}")
                continue
            engines = await pool.engines_for(contender)
            own = directory / f"{contender.name}-own"
            own.mkdir()
            running = await stack.enter_async_context(contender.running(engines, own))
            rows.append(AlternativeRow(contender, running, engines))
            say(f"started {contender.name}")
        service = None
        if ours:
            service = Service(stack.enter_context(Stack(None, plan.workers)))
            stack.callback(service.close)
            rows += [row for row in our_rows(service) if row.name in ours]
            say("started couponsvc up")
        yield Outcome([Measured(row) for row in rows], skipped), service


async def _run_rounds(plan: Plan, rows: Sequence[Measured], bench: Bench) -> None:
    """Warm up, then each round through all rows, forth and back, so that no row always follows the same."""
    rates: dict[str, float] = {}
    for measured in rows:
        try:
            rates[measured.row.name] = await bench.warm_up(measured)
        except FAILURES as failure:
            _fail(measured, failure)
    say("warmed up")
    for round_no in range(plan.rounds):
        for measured in _sound(rows if round_no % 2 == 0 else rows[::-1]):
            await _one_round(plan, measured, bench, rates, round_no)
    if plan.open_window_s:
        for measured in _sound(rows):
            await _one_open_loop(measured, bench, plan.open_window_s)
    if plan.profiler is not None:
        await _profile(plan, plan.profiler, _sound(rows), bench)


def _sound(rows: Sequence[Measured]) -> list[Measured]:
    return [measured for measured in rows if measured.failure is None]


async def _one_open_loop(measured: Measured, bench: Bench, window_s: float) -> None:
    try:
        found = await bench.opened(measured, window_s)
    except FAILURES as failure:
        _fail(measured, failure)
        return
    measured.open_loop = found
    say(
        f"open loop  {measured.row.name:22} {found.due / window_s:9,.0f}/s"
        f"  p99 {found.latency.p99_ms:7.1f} ms"
    )


async def _profile(plan: Plan, profiler: Profiler, rows: Sequence[Measured], bench: Bench) -> None:
    for measured in rows:
        if isinstance(measured.row, OurRow):
            await bench.closed(measured, measured.requests_per_s, plan.window_s, profiler)
            profiler.finish()
            say(f"profiled   {measured.row.name}")


async def _one_round(
    plan: Plan, measured: Measured, bench: Bench, rates: dict[str, float], round_no: int
) -> None:
    name = measured.row.name
    try:
        found = await bench.closed(measured, rates[name], plan.window_s)
    except FAILURES as failure:
        _fail(measured, failure)
        return
    measured.rounds.append(found)
    rates[name] = max(rates[name], found.loop.requests_per_s)
    say(
        f"round {round_no + 1}/{plan.rounds}  {name:22} {found.loop.requests_per_s:9,.0f}/s"
        f"  p99 {found.loop.p99_ms:7.1f} ms  CPU {found.cpu_sum_us:7.1f} µs"
    )


def _fail(measured: Measured, failure: Exception) -> None:
    measured.failure = f"{type(failure).__name__}: {failure}"
    say(f"FAILED {measured.row.name}: {measured.failure}")


async def _check(rows: Sequence[Measured], service: Service | None) -> None:
    began = time.monotonic()
    for measured in rows:
        try:
            measured.violations = await measured.row.invariants()
        except FAILURES as failure:
            _fail(measured, failure)
    if service is not None:
        code, text = await service.check()
        for measured in rows:
            if isinstance(measured.row, OurRow) and measured.violations is not None:
                measured.violations += blame(measured.row.drop_id, code, text)
    for measured in rows:
        for violation in measured.violations or ():
            say(f"VIOLATED {measured.row.name}: {violation}")
    say(f"invariants checked in {time.monotonic() - began:.1f} s")


def blame(drop_id: str, exit_code: int, table: str) -> list[str]:
    """What `couponsvc check` finds wrong with a drop, or with the stream, which is everybody's."""
    lines = [line for line in table.splitlines() if line.split(maxsplit=1)[:1] == [drop_id]]
    if not lines or not lines[0].endswith("agrees"):
        return [f"check: {lines[0] if lines else f'no line for {drop_id}: {table.strip()[-200:]}'}"]
    if exit_code and "DRIFT" not in table:
        return [f"check ended with {exit_code}: {table.strip().splitlines()[-1]}"]
    return []
