"""Judge a run: compare its records with what the deployment says, and write the report.

Credentials come from the environment (LOAD_AUDITOR_TOKEN, LOAD_PARTNER_KEY_ID and
LOAD_PARTNER_SECRET, or LOAD_PARTNER_TOKEN) or from a credentials file as `couponsvc up` writes it.
"""

import argparse
import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from couponsvc.client import Unreachable
from couponsvc.support.signing import SigningKey
from loadtests.access import AUDITOR_TOKEN, AccessError, read_access
from loadtests.oracle import Deployment, Patience, Refused, RunRecords, Verdict, judge
from loadtests.records import NotRecords
from loadtests.report import render, summary
from loadtests.scenario import ScenarioError, load_scenario

EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
PARTNER_TOKEN: Final = "LOAD_PARTNER_TOKEN"  # noqa: S105 - the variable's name
VERDICT_FILE: Final = "verdict.json"
REPORT_FILE: Final = "report.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="var/load/<scenario>-<time>")
    parser.add_argument("--host", help="where the deployment answers; else where the run went")
    parser.add_argument("--credentials", type=Path, metavar="FILE", help="credentials.json")
    parser.add_argument("--scenario", metavar="NAME", help="take the budgets of this scenario")
    parser.add_argument(
        "--settle-s",
        type=float,
        default=Patience().settle_s,
        help="how long pending units may take to come to rest (default: %(default)s)",
    )


def run(given: argparse.Namespace) -> int:
    """Judge, print the verdict, write `verdict.json` and `report.html` into the run directory."""
    gc.disable()  # a million tracks without a cycle among them would be walked over and over
    try:
        verdict = asyncio.run(_judge(given))
    except (NotRecords, ScenarioError, AccessError, Refused) as error:
        return _fail(str(error), EXIT_USAGE)
    except Unreachable as error:
        return _fail(str(error), EXIT_UNREACHABLE)
    directory: Path = given.directory
    data = msgspec.json.format(msgspec.json.encode(verdict), indent=1)
    (directory / VERDICT_FILE).write_bytes(data + b"\n")
    (directory / REPORT_FILE).write_text(render(verdict, RunRecords(directory).facts), "utf-8")
    print(summary(verdict))  # noqa: T201 - the command's output
    print(f"report: {directory / REPORT_FILE}")  # noqa: T201 - the command's output
    return verdict.exit_code


async def _judge(given: argparse.Namespace) -> Verdict:
    records = RunRecords(given.directory)
    budgets = load_scenario(given.scenario or records.facts.scenario).budgets
    auditor_token, partner = _credentials(given.credentials)
    deployment = Deployment(given.host or records.facts.host, auditor_token=auditor_token, partner=partner)
    async with deployment:
        return await judge(records, deployment, budgets, Patience(settle_s=given.settle_s))


def _credentials(path: Path | None) -> tuple[str, SigningKey | str]:
    """The auditor's token, and the partner's bearer token or key."""
    token = os.environ.get(PARTNER_TOKEN, "")
    auditor_token = os.environ.get(AUDITOR_TOKEN, "")
    if token and auditor_token:
        return auditor_token, token
    access = read_access(path, os.environ)
    if not access.auditor_token:
        raise AccessError(f"no auditor's token: set {AUDITOR_TOKEN}, or name a credentials file")
    return access.auditor_token, token or access.key


def _fail(says: str, code: int) -> int:
    print(says.replace("\n", " "), file=sys.stderr)  # noqa: T201 - the command's error
    return code
