"""The master's side of a run on the deployment: define its drops, watch them, operate on them."""

import logging
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import gevent  # type: ignore[import-untyped] # gevent ships no types

from couponsvc.client import ApiClient, ApiRefused, Unreachable
from loadtests import prepare
from loadtests.clock import RunClock, measure
from loadtests.driver.options import Options
from loadtests.plan import Plan, PlannedDrop
from loadtests.records import DropDefinition, DropSample, Operation, SampleWriter
from loadtests.scenario import PlannedOperation, Scenario
from loadtests.signed import SignedCalls, unix_ms

LEAD_S: Final = 6.0
"""From the last definition to the first person: time for the workers to read the clock, with room."""
GATHER_S: Final = 0.000_2
"""Per person that a worker plays, on a busy machine."""
DEFINE_ROOM: Final = 2.0
"""How much longer than the first definition of a drop the others may take."""
WATCH_EVERY_S: Final = 0.5
WATCHED_AT_ONCE_COUNT: Final = 12
"""Reads per round: a city of 200 drops is watched in turns, or watching would be a load of its own."""
_OK: Final = 200

_log: Final = logging.getLogger("locust.loadtests")


class NotReady(Exception):
    """The run cannot begin; the message is one line that says why."""


def define(options: Options, host: str, run: str, workers_count: int, clock: RunClock) -> Plan:
    """Define the drops of a run so that they open when everybody stands ready.

    Raises:
        ApiRefused, Unreachable: the deployment does not let us.
        NotReady: it takes so long to define drops that they would open too early.
    """
    scenario, access = options.scenario, options.access
    ready_s = LEAD_S + first_before_s(scenario) + GATHER_S * options.persons_count / workers_count
    with ApiClient(host, access.operator_token) as api, SignedCalls(host, access.key) as calls:
        prepare.define_program(api)
        began_s = time.perf_counter()
        clock_drop_id = prepare.define_clock_drop(api, run, access.partner_id, clock.wall_ms())
        each_s = time.perf_counter() - began_s
        offset = measure(calls.exchanges(clock_drop_id, f"{run}-m", clock))
        definitions_count = len(scenario.drops) + sum(drop.count for drop in scenario.drops)
        lead_s = ready_s + DEFINE_ROOM * each_s * definitions_count
        opens_ms = float(round(clock.wall_ms() + offset.offset_ms + lead_s * 1_000))
        plan = prepare.define_drops(
            api,
            scenario,
            run=run,
            persons_count=options.persons_count,
            partner_id=access.partner_id,
            opens_ms=opens_ms,
            clock_drop_id=clock_drop_id,
        )
    if clock.wall_ms() + offset.offset_ms > opens_ms - ready_s * 1_000 / 2:
        raise NotReady("defining the drops took too long; prepare them beforehand (loadtests/README.md)")
    return plan


def first_before_s(scenario: Scenario) -> float:
    """How long before the opening the first person may press."""
    scripts = [getattr(kind.person, "early_s", 0.0) for kind in scenario.mixture]
    return max(scenario.arrival.early_s, *scripts)


class Stage:
    """Reads drops and operates on them, with whatever token there is; close it."""

    def __init__(self, options: Options, host: str, plan: Plan, clock: RunClock) -> None:
        access = options.access
        token = access.operator_token or access.auditor_token
        self._api: Final = ApiClient(host, token) if token else None
        self._signed: Final = SignedCalls(host, access.key)
        self._plan: Final = plan
        self._clock: Final = clock
        self.operations: Final[list[Operation]] = []

    def close(self) -> None:
        """Close the connections."""
        self._signed.close()
        if self._api is not None:
            self._api.close()

    def definitions(self) -> list[DropDefinition]:
        """The drops of a plan that was handed over, as they stand before the run.

        Raises:
            NotReady: one is not there, or is not what was planned.
        """
        return [self._definition(drop) for drop in self._plan.drops]

    def _definition(self, planned: PlannedDrop) -> DropDefinition:
        found = self._read(planned.drop_id)
        if found is None:
            raise NotReady(f"drop {planned.drop_id} cannot be read; was it prepared for this partner?")
        definition = DropDefinition(
            drop_id=planned.drop_id,
            quantity=found["quantity"],
            per_person_limit=found["per_person_limit"],
            opens_ms=unix_ms(found["opens_at"]),
            closes_ms=unix_ms(found["closes_at"]),
            issued_before=found["issued"],
        )
        if (definition.quantity, definition.opens_ms) != (planned.quantity, planned.opens_ms):
            raise NotReady(f"drop {planned.drop_id} was changed since it was prepared; prepare anew")
        return definition

    def fresh_definitions(self) -> list[DropDefinition]:
        """The drops of a plan that was just made: what was said is what stands."""
        return [
            DropDefinition(
                drop_id=drop.drop_id,
                quantity=drop.quantity,
                per_person_limit=drop.per_person_limit,
                opens_ms=drop.opens_ms,
                closes_ms=drop.closes_ms,
            )
            for drop in self._plan.drops
        ]

    def watch(self, path: Path) -> None:
        """Write down what the drops' figures are, about twice a second, until killed."""
        drop_ids = [drop.drop_id for drop in self._plan.drops]
        turns: Iterator[str] = cycle(drop_ids)
        with SampleWriter(path) as samples:
            while True:
                began_s = time.perf_counter()
                for drop_id in islice(turns, min(len(drop_ids), WATCHED_AT_ONCE_COUNT)):
                    found = self._read(drop_id)
                    if found is not None:
                        samples.write(
                            DropSample(
                                drop_id=drop_id,
                                at_ms=self._clock.wall_ms(),
                                state=found["state"],
                                available=found["available"],
                                pending=found["pending"],
                                issued=found["issued"],
                                quantity=found["quantity"],
                            )
                        )
                samples.flush()
                gevent.sleep(max(WATCH_EVERY_S - (time.perf_counter() - began_s), 0.05))

    def operate(self, scenario: Scenario, persons_count: int) -> None:
        """Do what the scenario plans, when it plans it; returns when all of it is done."""
        for planned in sorted(scenario.operations, key=lambda operation: operation.at_s):
            gevent.sleep(max(planned.at_s - self._clock.now_s(), 0.0))
            for drop in self._plan.drops:
                if drop.name == planned.drop:
                    self._operate(planned, drop, scenario, persons_count)

    def _operate(
        self, planned: PlannedOperation, drop: PlannedDrop, scenario: Scenario, persons_count: int
    ) -> None:
        assert self._api is not None, "checked when the options were read"  # noqa: S101
        path = f"/v1/drops/{drop.drop_id}/{planned.what}"
        body: dict[str, Any] | None = None
        if planned.what == "restock":
            current = self._api.get(f"/v1/drops/{drop.drop_id}")["quantity"]
            kind = next(kind for kind in scenario.drops if kind.name == drop.name)
            add = max(1, round((planned.stock_per_person or 0.0) * persons_count / kind.count))
            body = {"current_quantity": current, "add": add}
        sent_ms = self._clock.wall_ms()
        try:
            _, found = self._api.post(path, body)
        except (ApiRefused, Unreachable) as error:
            _log.error("%s of %s: %s", planned.what, drop.drop_id, error)
            return
        self.operations.append(
            Operation(
                drop_id=drop.drop_id,
                what=planned.what,
                sent_ms=sent_ms,
                answered_ms=self._clock.wall_ms(),
                quantity_after=found["quantity"] if planned.what == "restock" else 0,
            )
        )

    def _read(self, drop_id: str) -> dict[str, Any] | None:
        try:
            if self._api is not None:
                return self._api.get(f"/v1/drops/{drop_id}")
            status, found = self._signed.read(f"/v1/drops/{drop_id}")
        except (ApiRefused, Unreachable):
            return None
        return found if status == _OK else None
