"""Define the drops of a scenario and write a plan, for testers who have no operator's token.

The operator runs this; whoever runs the load test gets the plan, a partner's key and an auditor's token.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Final

from couponsvc.client import ApiClient, ApiRefused, Unreachable
from loadtests import prepare
from loadtests.access import AccessError, read_operator
from loadtests.plan import Plan, new_run, write_plan
from loadtests.scenario import ScenarioError, load_scenario, names
from loadtests.signed import unix_ms

EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("scenario", help=f"one of {', '.join(names())}, or a file")
    parser.add_argument("--host", required=True, help="where the deployment answers")
    parser.add_argument("--persons", type=int, default=0, help="how many will come; 0: as the scenario says")
    parser.add_argument("--credentials", type=Path, metavar="FILE", help="credentials.json of the deployment")
    opening = parser.add_mutually_exclusive_group(required=True)
    opening.add_argument("--opens-at", metavar="TIME", help="opening, RFC 3339: 2026-10-01T10:00:00+08:00")
    opening.add_argument("--opens-in", type=float, metavar="SECONDS", help="opening, from now by our clock")
    parser.add_argument("--out", type=Path, default=Path("plan.json"), help="the plan (default: %(default)s)")


def run(given: argparse.Namespace) -> int:
    """Define the drops, write the plan, say when they open."""
    try:
        scenario = load_scenario(given.scenario)
        token, partner_id = read_operator(given.credentials, os.environ)
        opens_ms = _opens_ms(given)
        with ApiClient(given.host, token) as api:
            name = new_run()
            prepare.define_program(api)
            clock_drop_id = prepare.define_clock_drop(api, name, partner_id, opens_ms)
            plan = prepare.define_drops(
                api,
                scenario,
                run=name,
                persons_count=given.persons or scenario.persons,
                partner_id=partner_id,
                opens_ms=opens_ms,
                clock_drop_id=clock_drop_id,
            )
        write_plan(given.out, plan)
    except (ScenarioError, AccessError, ValueError) as error:
        return _fail(str(error), EXIT_USAGE)
    except (ApiRefused, Unreachable, OSError) as error:
        return _fail(str(error), EXIT_UNREACHABLE)
    print(_tell(plan, given.out))  # noqa: T201 - the command's output
    return 0


def _opens_ms(given: argparse.Namespace) -> float:
    """When the run opens.

    Raises:
        ValueError: `--opens-at` is no moment with a time zone, or has passed.
    """
    now_ms = time.time() * 1_000
    opens_ms = unix_ms(given.opens_at) if given.opens_at else now_ms + given.opens_in * 1_000
    if opens_ms <= now_ms:
        raise ValueError("the opening must be in the future")
    return float(round(opens_ms))


def _tell(plan: Plan, path: Path) -> str:
    stock = sum(drop.quantity for drop in plan.drops)
    return (
        f"{len(plan.drops)} drops with {stock:,} units for {plan.persons:,} persons are defined; plan: {path}"
    )


def _fail(says: str, code: int) -> int:
    print(f"loadtests: prepare: {says}", file=sys.stderr)  # noqa: T201 - the command's error
    return code
