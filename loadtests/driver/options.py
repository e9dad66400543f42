"""What a run is told: from locust's command line or the environment, checked before anything is sent."""

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from loadtests.access import Access, read_access
from loadtests.plan import Plan, PlanError, new_run_dir, read_plan
from loadtests.records import RECORDS_PATTERN
from loadtests.scenario import Scenario, ScenarioError, load_scenario

SEED: Final = 20261001


class _Parser(Protocol):
    """The part of locust's parser that is used."""

    def add_argument(self, *names: str, **settings: object) -> argparse.Action:
        """Add an argument; `env_var` names the variable that goes for it."""


def add_options(parser: _Parser) -> None:
    """Add our options to locust's. No secret is among them: locust sends its options to workers."""
    add = parser.add_argument
    add("--scenario", env_var="LOAD_SCENARIO", default="rush", help="name in loadtests/scenarios, or a file")
    add("--persons", env_var="LOAD_PERSONS", type=int, default=0, help="how many come; 0: as the file says")
    add("--seed", env_var="LOAD_SEED", type=int, default=SEED, help="of everything that chance decides")
    add("--plan", env_var="LOAD_PLAN", default="", help="plan.json of prepared drops; else they are defined")
    add("--credentials", env_var="LOAD_CREDENTIALS", default="", help="credentials.json of this machine")
    add("--run-dir", env_var="LOAD_RUN_DIR", default="", help="where records and report go")
    add("--no-judge", env_var="LOAD_NO_JUDGE", action="store_true", help="keep the records, judge later")
    add("--quiet", action="store_true", help="no table of locust's own statistics at the end")


@dataclass(frozen=True, slots=True)
class Options:
    """One run as it was asked for."""

    scenario: Scenario
    scenario_name: str
    """As it was given: a name, or the path of a file."""
    persons_count: int
    seed: int
    plan: Plan | None
    access: Access = field(repr=False)
    run_dir: Path | None
    judged: bool

    @classmethod
    def read(cls, given: argparse.Namespace) -> "Options":
        """Check what was asked for.

        Raises:
            ScenarioError, PlanError, AccessError: it cannot be done; the message says why.
        """
        plan = read_plan(Path(given.plan)) if given.plan else None
        scenario = load_scenario(given.scenario)
        if plan is not None and plan.scenario != scenario.scenario:
            raise PlanError(f"{given.plan} was prepared for {plan.scenario}, not for {scenario.scenario}")
        if plan is not None and len(plan.drops) != sum(drop.count for drop in scenario.drops):
            raise PlanError(f"{given.plan} was prepared for other drops than the scenario now has")
        access = read_access(Path(given.credentials) if given.credentials else None, os.environ)
        if plan is None and not (access.operator_token and access.partner_id):
            raise PlanError("no --plan, and no operator's token and partner id to define drops with")
        if scenario.operations and not access.operator_token:
            raise ScenarioError(f"{scenario.scenario} operates on drops; it needs an operator's token")
        if not (access.auditor_token or given.no_judge):
            raise PlanError("no auditor's token to judge with; set it, or keep the records with --no-judge")
        if given.run_dir and any(Path(given.run_dir).glob(RECORDS_PATTERN)):
            raise PlanError(f"{given.run_dir} holds the records of another run; name an empty directory")
        if given.persons < 0:
            raise ScenarioError("--persons must be positive")
        return cls(
            scenario=scenario,
            scenario_name=given.scenario,
            persons_count=given.persons or (plan.persons if plan else scenario.persons),
            seed=given.seed,
            plan=plan,
            access=access,
            run_dir=Path(given.run_dir) if given.run_dir else None,
            judged=not given.no_judge,
        )

    def make_run_dir(self) -> Path:
        """`var/load/<scenario>-<utc time>/`, or what was asked for."""
        directory = self.run_dir
        if directory is None or any(directory.glob(RECORDS_PATTERN)):  # a further run from the web page
            directory = new_run_dir(self.scenario.scenario)
        directory.mkdir(parents=True, exist_ok=True)
        return directory
