"""Carries out the faults of a plan on a deployment, several at a time, and undoes every one of them.

Two faults of one server or one process cannot be carried out at the same time, so each takes the locks
of whatever it touches and waits; faults of lines combine. When the run is over, faults that have not
begun are left out, the others are undone, and whatever may be left is healed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Final

from redis.exceptions import RedisError

from couponsvc.engines.errors import EngineError
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.history import FaultNote, History
from tests.faults.harness.inflicting import Inflicting
from tests.faults.harness.inflictions import INFLICTIONS
from tests.faults.harness.plan import Fault, Plan
from tests.faults.harness.watching import Window

HEAL_PATIENCE_S: Final = 60.0
"""Postgres may have minutes of log to replay after a hard stop; here it has seconds."""


class Nemesis:
    """One run's faults; `counted` and `failed` tell afterwards what really happened."""

    def __init__(self, deployment: Deployment, plan: Plan, history: History) -> None:
        self._deployment: Final = deployment
        self._plan: Final = plan
        self._history: Final = history
        self._over: Final = asyncio.Event()
        self._locks: Final[dict[str, asyncio.Lock]] = {}
        self._inflicting: Final = Inflicting(deployment, self._over)
        self.counted: Final[Counter[str]] = Counter()
        self.failed: Final[list[str]] = []
        """Faults that could not be carried out, and why."""

        self.heal_s = 0.0
        """From the end of the plan until the last fault was undone and the servers ran."""
        self.ready_s = 0.0
        """From then until the service was ready."""

    @property
    def hit_points(self) -> list[str]:
        """Kill points that a process has passed while they were armed."""
        return self._inflicting.hit_points

    @property
    def windows(self) -> list[Window]:
        """Times in which the API talked to a Redis that nobody had checked."""
        return self._inflicting.witness.windows

    async def carry_out(self, began_s: float) -> None:
        """Carry out the plan from `began_s` (`time.monotonic`) on; returns when everything is healed."""
        faults = [asyncio.create_task(self._one(fault, began_s)) for fault in self._plan.faults]
        await asyncio.sleep(max(0.0, began_s + self._plan.seconds - time.monotonic()))
        self._over.set()
        await asyncio.gather(*faults)
        await self._inflicting.witness.end()
        await self._deployment.heal()
        self._history.healed_ns = healed_ns = time.monotonic_ns()
        self.heal_s = healed_ns / 1e9 - began_s - self._plan.seconds
        await self._deployment.until_ready(HEAL_PATIENCE_S)
        self.ready_s = (time.monotonic_ns() - healed_ns) / 1e9

    async def _one(self, fault: Fault, began_s: float) -> None:
        await self._inflicting.last(began_s + fault.at_s - time.monotonic())
        async with AsyncExitStack() as held:
            for name in sorted(self._touched(fault)):
                await held.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            if self._over.is_set():
                return
            began_ns = time.monotonic_ns()
            try:
                async with INFLICTIONS[fault.kind](self._inflicting, fault.details):
                    self.counted[fault.kind] += 1
                    await self._inflicting.last(fault.lasts_s)
            except (EngineError, OSError, RedisError, TimeoutError) as error:
                self.failed.append(f"{fault}: {type(error).__name__}: {error}")
            self._history.faults.append(FaultNote(str(fault), began_ns, time.monotonic_ns()))

    def _touched(self, fault: Fault) -> Iterable[str]:
        """Servers and processes that nobody else may touch meanwhile."""
        details = fault.details
        if fault.kind.startswith("redis ") or "provoked_by" in details:
            yield "redis"
        if fault.kind.startswith("postgres ") and fault.kind != "postgres unreachable":
            yield "postgres"
        if "member" in details:
            yield str(details["member"])
        if "process" in details:
            yield from self._deployment.members(str(details["process"]))
        if "point" in details:
            yield str(details["point"])
