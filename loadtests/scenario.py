"""Scenario files: what happens in a run, who the persons are, and what is asked of the deployment.

A scenario is `loadtests/scenarios/<name>.yaml`. It is read strictly: an unknown word, a missing
number or shares that do not add up end the run before anything is sent. Times are seconds; those
called `opens_s` and `at_s` count from the opening of the run, which is "10:00" whatever the date.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import yaml

from loadtests.persons.traits import Traits

DIRECTORY: Final = Path(__file__).parent / "scenarios"
SHARES_TOLERANCE: Final = 1e-6
"""Shares are written in decimals; their sum is compared in floating point."""

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]
Milliseconds = Annotated[float, msgspec.Meta(gt=0.0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ScenarioError(ValueError):
    """A scenario cannot be used; the message is one line that names the file and says why."""


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the deployment, measured over grabs (records with action GRAB).

    Latency counts from `intended_ms` to `answered_ms`: in an open loop that is from the moment the
    person wanted the answer. Grabs that were abandoned on purpose have no latency.
    """

    p50_ms: Milliseconds
    p99_ms: Milliseconds
    first_answer_p99_ms: Milliseconds | None = None
    """Over the first answer that each number got, from its first attempt; None: not asked."""
    confirmed_within_ms: Milliseconds | None = None
    """p99 over confirmed numbers, from the first attempt to the first 200 or 201; None: not asked."""
    errors_share: Share
    """Answers outside the contract, or that blame the caller: 5xx but 503, 4xx but 404 `unknown_request`,
    409 and 429."""
    unanswered_share: Share
    """Status 0, those ABANDONED on purpose apart."""
    overloaded_share: Share = 0.0
    """429 and 503: an allowed answer where everybody comes at once, yet not to everybody."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When persons press first, counted from the opening of the drop they came for.

    `rush`: `early_share` of them come evenly over the `early_s` before the opening, the others
    after it, log-normally around `median_s`. `even`: everybody evenly from `from_s` on, which for
    independent persons is a Poisson process.
    """

    curve: Literal["rush", "even"]
    within_s: Annotated[float, msgspec.Meta(gt=0.0)]
    """The last of them comes this long after the opening (`rush`) or after `from_s` (`even`)."""
    early_share: Share = 0.0
    early_s: Seconds = 0.0
    median_s: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    sigma: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    """Of the logarithm; 1.0 means that two thirds come between 0.37 and 2.7 times the median."""
    from_s: Seconds = 0.0


class Drop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A drop of the run, or `count` of a kind."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,23}$")]
    stock_per_person: Annotated[float, msgspec.Meta(gt=0.0)]
    """Units in all `count` drops, per person of the whole run."""
    demand: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    """Weight with which persons come for it first (for one of them, where `count` says several)."""
    count: Count = 1
    per_person_limit: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    opens_s: Seconds = 0.0
    stays_open_s: Seconds = 3_600.0
    face_value_fen: Count = 2_000
    min_spend_fen: Annotated[int, msgspec.Meta(ge=0)] = 5_000


class PlannedOperation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that the operator does in the run; needs the operator's token."""

    at_s: Seconds
    drop: str
    what: Literal["pause", "resume", "restock"]
    stock_per_person: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    """`restock` only: units to add, per person of the whole run."""


class Mixture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of persons: how many of them there are, and what they are like."""

    share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
    person: Traits


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scenario file."""

    scenario: str
    says: str
    """One sentence for the report."""
    loop: Literal["open", "closed"]
    """`open`: latency counts from when a request was due; `closed`: from when it was sent."""
    persons: Count
    """Where nobody says how many."""
    lasts_s: Annotated[float, msgspec.Meta(gt=0.0)]
    """From the opening of the run; whoever still waits then goes home."""
    lanes: Count
    """Requests that one worker process has in flight at most: connections of the partner."""
    arrival: Arrival
    drops: Annotated[Sequence[Drop], msgspec.Meta(min_length=1)]
    mixture: Annotated[Sequence[Mixture], msgspec.Meta(min_length=1)]
    budgets: Budgets
    operations: Sequence[PlannedOperation] = ()

    def quantity(self, drop: Drop, persons_count: int) -> int:
        """Units of one drop of this kind in a run of so many persons; at least one."""
        return max(1, round(drop.stock_per_person * persons_count / drop.count))


def names() -> list[str]:
    """Every scenario there is."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load_scenario(name: str) -> Scenario:
    """Read a scenario by its name, or any scenario file by its path.

    Raises:
        ScenarioError: there is none, or the file does not hold together.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else DIRECTORY / f"{name}.yaml"
    try:
        content: Any = yaml.safe_load(path.read_text("utf-8"))
    except OSError:
        raise ScenarioError(f"there is no scenario {name}; choose one of {', '.join(names())}") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path.name}: {' '.join(str(error).split())}") from None
    try:
        scenario = msgspec.convert(content, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{path.name}: {error}") from None
    for fault in faults(scenario):
        raise ScenarioError(f"{path.name}: {fault}")
    return scenario


def faults(scenario: Scenario) -> list[str]:
    """What does not hold together, one sentence each; empty: nothing."""
    found = []
    total = sum(kind.share for kind in scenario.mixture)
    if abs(total - 1.0) > SHARES_TOLERANCE:
        found.append(f"the shares of the mixture add up to {total:g}, not 1")
    known = [drop.name for drop in scenario.drops]
    if len(set(known)) < len(known):
        found.append("two drops have the same name")
    for operation in scenario.operations:
        if operation.drop not in known:
            found.append(f"{operation.what} names an unknown drop: {operation.drop}")
        if (operation.what == "restock") != (operation.stock_per_person is not None):
            found.append(f"stock_per_person belongs to restock, and only to it ({operation.drop})")
        if operation.at_s > scenario.lasts_s:
            found.append(f"{operation.what} of {operation.drop} comes after the end of the run")
    found.extend(
        f"drop {drop.name} opens after the end of the run"
        for drop in scenario.drops
        if drop.opens_s >= scenario.lasts_s
    )
    if scenario.arrival.early_share and not scenario.arrival.early_s:
        found.append("early_share needs early_s")
    return found
