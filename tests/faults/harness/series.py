"""Many schedules, one after the other, on deployments that are made anew every few of them."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.faults.harness.deployment import Deployment
from tests.faults.harness.fault_kinds import Capabilities
from tests.faults.harness.plan import Plan
from tests.faults.harness.results import Found, Result, keep
from tests.faults.harness.run import Run

START_ATTEMPTS_COUNT: Final = 3
AFTERWARDS_PATIENCE_S: Final = 300.0
"""Healing, selling out, asking everything again and judging take some 20 s; one stuck seed must not hold
up the others."""

PlanMaker = Callable[[Capabilities], Plan]


class Series:
    """Runs schedules; an asynchronous context that leaves no process and no data.

    Args:
        out_dir: Where runs with violations leave plan, history, final state and logs.
        per_deployment_count: Schedules that share a deployment. One that broke a promise is its last.
        keep_all: Leave everything of good runs, too.
        source: Run the service from there instead of `src`.
        say: Is given each plan before it is carried out.
    """

    def __init__(
        self,
        out_dir: Path,
        *,
        per_deployment_count: int = 1,
        keep_all: bool = False,
        source: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._out_dir: Final = out_dir
        self._per_deployment_count: Final = per_deployment_count
        self._keep_all: Final = keep_all
        self._source: Final = source
        self._say: Final = say

    async def run(self, makers: Iterable[PlanMaker]) -> AsyncIterator[Result]:
        """Carry out schedules and yield what came of each."""
        waiting = list(reversed(list(makers)))
        while waiting:
            began_s = time.monotonic()
            async with self._deployed() as deployment:
                start_s = round(time.monotonic() - began_s, 2)
                for _ in range(min(self._per_deployment_count, len(waiting))):
                    plan = waiting.pop()(Capabilities(clocks=deployment.can_fake_clock))
                    self._say(plan.text())
                    found = await self._one(deployment, plan)
                    found.result.took_s["start"] = start_s
                    yield found.result
                    if found.result.violations:
                        break

    async def _one(self, deployment: Deployment, plan: Plan) -> Found:
        numbers_path = deployment.kill_points_dir.with_name(f"numbers-{plan.seed}.tsv")
        run = Run(deployment, plan, numbers_path)
        try:
            async with asyncio.timeout(plan.seconds + AFTERWARDS_PATIENCE_S):
                found = await run.carry_out()
        except Exception as error:  # noqa: BLE001 - it is a finding like any other, and the next seed waits
            found = run.unfinished(_causes(error))
        if found.result.violations or self._keep_all:
            keep(self._out_dir / f"seed-{plan.seed}", deployment.log_paths(), plan, found)
        return found

    @asynccontextmanager
    async def _deployed(self) -> AsyncIterator[Deployment]:
        base = Path(tempfile.mkdtemp(prefix="couponsvc-faults-"))
        try:
            base.chmod(0o711)  # as root, the engines' account must get through to its own part
            deployment = await self._started(base)
            try:
                yield deployment
            finally:
                await deployment.stop()
        finally:
            shutil.rmtree(base, ignore_errors=True)

    async def _started(self, base: Path) -> Deployment:
        """A machine that is busy beyond measure may need more than one attempt.

        Raises:
            Exception: of the last attempt.
        """
        for attempt_no in range(1, START_ATTEMPTS_COUNT + 1):
            deployment = Deployment(base / str(attempt_no), with_replica=True, source=self._source)
            try:
                return await deployment.__aenter__()
            except Exception:
                if attempt_no == START_ATTEMPTS_COUNT:
                    raise
        raise AssertionError  # the last attempt returns or raises


def _causes(error: BaseException) -> str:
    """An error on one line, those that a group collects included."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_causes(inner) for inner in error.exceptions)
    return f"{type(error).__name__}: {error}".replace("\n", " ")
