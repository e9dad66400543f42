"""One schedule from beginning to end: press, break, heal, sell out, ask everything again, judge."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from couponsvc.client import ApiClient, ApiRefused, Unreachable
from tests.faults.harness.asking import Asker
from tests.faults.harness.changing import Changing
from tests.faults.harness.checker import judge
from tests.faults.harness.crowd import FINAL_ROLES, Crowd
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.final import FinalState, read_final
from tests.faults.harness.following import Following
from tests.faults.harness.hearing import Hearing
from tests.faults.harness.history import History
from tests.faults.harness.nemesis import Nemesis
from tests.faults.harness.numbers import NumberBook
from tests.faults.harness.plan import Plan
from tests.faults.harness.results import Found, Result, told
from tests.faults.harness.watching import judge_windows

SELL_OUT_PATIENCE_S: Final = 45.0
"""Longer than is allowed, so that a run can tell what would have happened."""
SILENT_MAX_S: Final = 10.0
"""After healing, until a drop is sold out for good: while fresh persons ask without a pause, units that
nobody gets for so long are stranded. How fast they are sold is a matter of the machine."""
QUIET_AFTER_S: Final = SILENT_MAX_S + 0.2
OPEN_PATIENCE_S: Final = 20.0
UNCHECKED_MAX_COUNT: Final = 5
"""Examples that are told."""
_POLL_S: Final = 0.05


class Run:
    """One schedule on a deployment that is ready. Carried out once."""

    def __init__(self, deployment: Deployment, plan: Plan, numbers_path: Path) -> None:
        self._deployment: Final = deployment
        self._plan: Final = plan
        self._numbers_path: Final = numbers_path
        self._restarts_before: Final = Counter(deployment.restarts)
        self._since_s = time.monotonic()
        self._took_s: Final[dict[str, float]] = {}
        self._sold_out_s: Final[dict[str, float]] = {}
        self._unsettled_count = 0
        self.history: Final = History()
        self._nemesis: Final = Nemesis(deployment, plan, self.history)
        self._changing: Final = Changing(deployment.url, deployment.operator_token, self.history, plan)
        self._asker: Final = Asker(deployment.url, deployment.keys, self.history)
        self._hearing: Final = Hearing(deployment.url, deployment.keys, plan.seed)
        self._following: Final = Following(deployment.url, deployment.keys, deployment.postgres_dsn)

    async def carry_out(self) -> Found:
        """Do everything.

        Raises:
            Exception: the service was not there when nothing was broken, or does not come back.
        """
        with NumberBook(self._numbers_path) as book:
            crowd = Crowd(self._asker, self._plan, book)
            try:
                await self._hearing.start()
                await self._following.start()
                await self._changing.define(sorted(self._deployment.keys))
                await self._until_open()
                self._lap("define")
                await self._press_and_break(crowd)
                self._unsettled_count = await crowd.ask_everything_again()
                self._lap("ask again")
                quiet_from_s = self.history.healed_ns / 1e9 + QUIET_AFTER_S
                await asyncio.sleep(max(0.0, quiet_from_s - time.monotonic()))
                await crowd.try_once_more()
                self._lap("grow quiet")
                drop_ids = [drop.drop_id for drop in self._plan.drops]
                final = await read_final(self._deployment, drop_ids)
                await self._following.catch_up()
                followed = (self._following.paged, self._following.streamed)
                final = final._replace(heard=self._hearing.heard, followed=followed)
            finally:
                self._asker.close()
                await self._following.stop()
                await self._hearing.stop()
        self._lap("read final state")
        return self._judged(final)

    def unfinished(self, why: str) -> Found:
        """What there is to tell of a run that could not be carried out to its end."""
        return Found(self._result([f"unfinished: {why}"]), self.history)

    async def _press_and_break(self, crowd: Crowd) -> None:
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.press())
            changes = tasks.create_task(self._changing.carry_out(began_s))
            await self._nemesis.carry_out(began_s)
            self._lap("break and heal")
            await changes
            crowd.stop()
            await self._changing.resume_everything()
            for role in FINAL_ROLES:
                tasks.create_task(self._sell_out(crowd, role))
        self._lap("sell out")

    async def _sell_out(self, crowd: Crowd, role: str) -> None:
        try:
            await asyncio.wait_for(crowd.sell_out(role), SELL_OUT_PATIENCE_S)
        except TimeoutError:
            self._sold_out_s[role] = -1.0
        else:
            self._sold_out_s[role] = round((time.monotonic_ns() - self.history.healed_ns) / 1e9, 2)

    async def _until_open(self) -> None:
        """Wait until every drop can be read as open.

        Raises:
            TimeoutError: one of them cannot.
        """
        deadline_s = time.monotonic() + OPEN_PATIENCE_S
        with ApiClient(self._deployment.url, self._deployment.operator_token) as api:
            for drop in self._plan.drops:
                while (state := await asyncio.to_thread(_state, api, drop.drop_id)) != "open":
                    if time.monotonic() > deadline_s:
                        raise TimeoutError(f"{drop.drop_id} is {state} before anything was broken")
                    await asyncio.sleep(_POLL_S)

    # --- telling ------------------------------------------------------------------------------
    def _judged(self, final: FinalState) -> Found:
        report = judge(self.history, final)
        self._lap("judge")
        unchecked, answers = judge_windows(self.history.calls, self._nemesis.windows)
        violations = [*told(report), *unchecked[:UNCHECKED_MAX_COUNT], *self._unsold(final)]
        violations += self._indiscreet()
        if self._unsettled_count:
            violations.append(f"settled: {self._unsettled_count} numbers have no answer after healing")
        if self._hearing.forged_count:
            violations.append(
                f"signed: {self._hearing.forged_count} deliveries were not signed as they must be"
            )
        result = self._result(violations)
        result.confirmed_vouchers = len(final.vouchers)
        result.rebuilds = sum(drop.epoch - 1 for drop in final.drops)
        result.checked = dict(report.checked)
        result.unchecked_answers = dict(answers)
        return Found(result, self.history, report, final)

    def _result(self, violations: list[str]) -> Result:
        return Result(
            seed=self._plan.seed,
            seconds=self._plan.seconds,
            violations=violations,
            calls=len(self.history.calls),
            answers=dict(self._asker.answers.most_common()),
            faults=dict(self._nemesis.counted),
            fault_failures=self._nemesis.failed,
            kill_points_hit=self._nemesis.hit_points,
            restarts=dict(Counter(self._deployment.restarts) - self._restarts_before),
            unchecked_windows=len(self._nemesis.windows),
            deliveries=self._hearing.deliveries_count,
            heal_s=round(self._nemesis.heal_s, 2),
            ready_after_heal_s=round(self._nemesis.ready_s, 2),
            sold_out_after_heal_s=self._sold_out_s,
            took_s=self._took_s,
        )

    def _indiscreet(self) -> Iterator[str]:
        """No log, the servers' included, names a person or shows a token."""
        secrets = {
            "a person": f"p-{self._plan.seed}-",
            "the operator's token": self._deployment.operator_token,
            "the auditor's token": self._deployment.auditor_token,
        }
        for path in self._deployment.log_paths():
            text = path.read_text("utf-8", "replace") if path.exists() else ""
            for what, secret in secrets.items():
                if secret in text:
                    yield f"discreet: {path.parent.name}/{path.name} shows {what}"

    def _unsold(self, final: FinalState) -> Iterator[str]:
        healed_ms = self.history.healed_ns / 1e6 + self.history.wall_offset_ms
        for role, after_s in self._sold_out_s.items():
            if after_s < 0:
                yield f"sold_out_in_time: {role} is not sold out {SELL_OUT_PATIENCE_S:.0f} s after healing"
                continue
            drop_id = self._plan.drop(role).drop_id
            open_ms = max(healed_ms, self._resumed_ms(drop_id))
            issued = [v.issued_ms for v in final.vouchers if v.drop_id == drop_id and v.issued_ms > open_ms]
            gaps = [later - earlier for earlier, later in pairwise([open_ms, *sorted(issued)])]
            silent_s = max(gaps, default=0.0) / 1_000
            if silent_s > SILENT_MAX_S:
                yield f"sold_out_in_time: nothing of {role} was issued for {silent_s:.1f} s after healing"

    def _resumed_ms(self, drop_id: str) -> float:
        """When a paused drop was open again: an operator whom faults kept waiting comes late.

        The first resumption after the last pause; those that are repeated later change nothing.
        """
        operations = [one for one in self.history.operations if one.drop_id == drop_id]
        paused_ns = max(
            (one.ended_ns for one in operations if one.what == "pause" and one.ok is not False), default=0
        )
        resumed_ns = (
            one.ended_ns
            for one in operations
            if one.what == "resume" and one.ok and one.began_ns >= paused_ns > 0
        )
        return min(resumed_ns, default=0) / 1e6 + self.history.wall_offset_ms

    def _lap(self, name: str) -> None:
        now_s = time.monotonic()
        self._took_s[name] = round(now_s - self._since_s, 2)
        self._since_s = now_s


def _state(api: ApiClient, drop_id: str) -> str:
    try:
        return str(api.get(f"/v1/drops/{drop_id}")["state"])
    except (ApiRefused, Unreachable) as error:
        return str(error)
