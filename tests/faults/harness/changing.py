"""The operators of a run: define its drops, and restock, lower, pause and resume them in mid-run."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from couponsvc.client import ApiClient, ApiRefused, Unreachable
from tests.faults.harness.history import History, Operation
from tests.faults.harness.plan import Change, DropPlan, Plan

DEFINE_PATIENCE_S: Final = 30.0
RESUME_PATIENCE_S: Final = 30.0
_POLL_S: Final = 0.1
_BROKEN: Final = 500
PROGRAM: Final = "faults"
TEMPLATE: Final = "dining-20"


class Changing:
    """Carries out a plan's changes through the API and records each attempt."""

    def __init__(self, url: str, operator_token: str, history: History, plan: Plan) -> None:
        self._url: Final = url
        self._token: Final = operator_token
        self._history: Final = history
        self._plan: Final = plan
        now = datetime.now(UTC)
        self._window: Final = {
            "opens_at": (now - timedelta(minutes=5)).isoformat(),
            "closes_at": (now + timedelta(hours=6)).isoformat(),
        }

    async def define(self, partner_ids: list[str]) -> None:
        """Define program, template and drops; nothing is broken yet, so all of it must be done at once.

        Raises:
            Unreachable, ApiRefused: the service does not work.
        """
        await asyncio.to_thread(self._define, partner_ids)

    async def carry_out(self, began_s: float) -> None:
        """Make every change at its moment, counted from `began_s` (`time.monotonic`)."""
        for change in self._plan.changes:
            await asyncio.sleep(max(0.0, began_s + change.at_s - time.monotonic()))
            await asyncio.to_thread(self._change, change)

    async def resume_everything(self) -> None:
        """After healing: a drop that was paused (perhaps without our knowing) sells again.

        Raises:
            TimeoutError: not to be had within `RESUME_PATIENCE_S`.
        """
        paused = {change.role for change in self._plan.changes if change.what == "pause"}
        deadline_s = time.monotonic() + RESUME_PATIENCE_S
        for role in sorted(paused):
            drop = self._plan.drop(role)
            while not await asyncio.to_thread(self._change, Change(0.0, "resume", role)):
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"{drop.drop_id} cannot be resumed")
                await asyncio.sleep(_POLL_S)

    def _define(self, partner_ids: list[str]) -> None:
        with ApiClient(self._url, self._token) as api:
            api.put(f"/v1/programs/{PROGRAM}", {"name": "Faults", "region": "370200"})
            api.put(
                f"/v1/programs/{PROGRAM}/templates/{TEMPLATE}",
                {"name": "T", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48},
            )
            for drop in self._plan.drops:
                began_ns = time.monotonic_ns()
                api.put(f"/v1/drops/{drop.drop_id}", self._body(drop, drop.quantity, partner_ids))
                self._note("define", drop, began_ns, drop.quantity, ok=True)
        self._partner_ids = partner_ids

    def _body(self, drop: DropPlan, quantity: int, partner_ids: list[str]) -> dict[str, Any]:
        return {
            "program_id": PROGRAM,
            "template_id": TEMPLATE,
            "quantity": quantity,
            "per_person_limit": drop.per_person_limit,
            "partners": partner_ids,
            **self._window,
        }

    def _change(self, change: Change) -> bool:
        """One attempt; an operator whom the service does not answer looks again at the next change."""
        drop = self._plan.drop(change.role)
        with ApiClient(self._url, self._token) as api:
            try:
                quantity = int(api.get(f"/v1/drops/{drop.drop_id}")["quantity"])
            except (Unreachable, ApiRefused):
                return False
            after = quantity
            began_ns = time.monotonic_ns()
            ok: bool | None = True
            try:
                match change.what:
                    case "restock":
                        after = quantity + change.units
                        body = {"current_quantity": quantity, "add": change.units}
                        api.post(f"/v1/drops/{drop.drop_id}/restock", body)
                    case "lower":
                        after = quantity - change.units
                        api.put(f"/v1/drops/{drop.drop_id}", self._body(drop, after, self._partner_ids))
                    case what:
                        api.post(f"/v1/drops/{drop.drop_id}/{what}")
            except ApiRefused as refused:
                ok = False if refused.status < _BROKEN else None
            except Unreachable:
                ok = None
        self._note(change.what, drop, began_ns, after, ok=ok)
        return ok is True

    def _note(
        self, what: str, drop: DropPlan, began_ns: int, quantity_after: int, *, ok: bool | None
    ) -> None:
        ended_ns = time.monotonic_ns()
        self._history.operations.append(Operation(what, drop.drop_id, began_ns, ended_ns, quantity_after, ok))
