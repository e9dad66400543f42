"""A plan: the drops that one run uses, as an operator prepared them. `plan.json` can be handed over."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

RUNS_DIR: Final = Path("var/load")
CLOCK_STOCK_COUNT: Final = 20_000
"""Vouchers of the clock drop: nine per worker and run, so one plan serves many runs."""


class PlanError(ValueError):
    """A plan cannot be used; the message is one line that says why."""


class PlannedDrop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One drop as it was defined. Times are Unix milliseconds of the deployment's clock."""

    drop_id: str
    name: str
    """Of its kind in the scenario."""
    quantity: int
    per_person_limit: int
    opens_ms: float
    closes_ms: float


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run needs to know of the deployment. Holds no secret."""

    scenario: str
    persons: int
    opens_ms: float
    """The opening of the run, by the deployment's clock."""
    drops: Sequence[PlannedDrop]
    """In the order of the scenario's drops."""
    clock_drop_id: str = ""
    """A drop that is open all the time, to read the deployment's clock from; empty: none."""


def new_run() -> str:
    """Prefix of every name and number of a run."""
    return f"l{secrets.token_hex(4)}"


def new_run_dir(scenario: str) -> Path:
    """`var/load/<scenario>-<utc time>/`; not made yet."""
    return RUNS_DIR / f"{scenario}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def write_plan(path: Path, plan: Plan) -> None:
    """Write `plan.json`."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def read_plan(path: Path) -> Plan:
    """Read `plan.json`.

    Raises:
        PlanError: it is missing or no plan.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}; `python -m loadtests prepare` writes one") from None
    except msgspec.MsgspecError as error:
        raise PlanError(f"{path}: not a plan: {error}") from None
