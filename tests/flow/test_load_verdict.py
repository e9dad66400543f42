"""The oracle on the real service: a small crowd, judged through the API alone, and the command line."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from loadtests.oracle import Deployment, Patience, Promise, RunRecords, Standing, Verdict, judge
from loadtests.oracle.evidence import Figures
from loadtests.records import DropDefinition
from loadtests.scenario import Budgets

from tests.doubles.driver import Crowd, drive
from tests.flow.conftest import Service

pytestmark = pytest.mark.faults  # slower than the fast set may be

BUDGETS = Budgets(p50_ms=5_000.0, p99_ms=5_000.0, errors_share=0.0, unanswered_share=0.0)
PERSONS = 80


async def run_of(
    service: Service, directory: Path, quantity: int, *, opens_in_s: float = 0.3, **crowd: object
) -> RunRecords:
    """Drive a crowd against a new drop of the service."""
    drop_id = await service.drop(quantity, opens_in_s=opens_in_s)
    defined = await service.operate("GET", f"/v1/drops/{drop_id}")
    drop = DropDefinition(
        drop_id=drop_id,
        quantity=quantity,
        per_person_limit=1,
        opens_ms=datetime.fromisoformat(defined["opens_at"]).timestamp() * 1000,
        closes_ms=datetime.fromisoformat(defined["closes_at"]).timestamp() * 1000,
    )

    async def figures(name: str) -> Figures:
        return msgspec.convert(await service.operate("GET", f"/v1/drops/{name}"), Figures, strict=False)

    async def operate(name: str, what: str, body: dict[str, int]) -> object:
        return await service.operate("POST", f"/v1/drops/{name}/{what}", dict(body))

    planned = Crowd([drop], **{"persons_count": PERSONS, **crowd})  # type: ignore[arg-type] # a test names the fields
    return await drive(service.url, service.key, planned, directory, figures=figures, operate=operate)


async def verdict_of(service: Service, run: RunRecords) -> Verdict:
    token = service.credentials["auditor"]["token"]
    async with Deployment(service.url, auditor_token=token, partner=service.key) as deployment:
        return await judge(run, deployment, BUDGETS, Patience(settle_s=10.0))


def words(verdict: Verdict) -> list[str]:
    return [f"{f.rule}: {e.says} {e.proofs}" for f in verdict.findings for e in f.examples]


async def test_a_rush_on_the_service_keeps_every_promise(service: Service, tmp_path: Path) -> None:
    verdict = await verdict_of(service, await run_of(service, tmp_path, 40))
    assert words(verdict) == []
    assert {promise: verdict.standing(promise) for promise in Promise} == dict.fromkeys(
        Promise, Standing.KEPT
    )
    assert (verdict.drops[0].issued, verdict.drops[0].state) == (40, "sold_out")
    assert {"issued", "repeated", "pending", "sold_out", "person_limit"} <= set(verdict.outcomes)


async def test_a_pause_and_a_restock_break_nothing(service: Service, tmp_path: Path) -> None:
    plan = {
        5: [("pause", dict[str, int]()), ("resume", dict[str, int]())],
        60: [("restock", {"current_quantity": 20, "add": 5})],
    }
    run = await run_of(service, tmp_path, 20, opens_in_s=-1.0, plan=plan, persons_count=200)
    verdict = await verdict_of(service, run)
    assert words(verdict) == []
    assert verdict.drops[0].issued == 25


@pytest.fixture
def judged(service: Service) -> Callable[[Path], Awaitable[subprocess.CompletedProcess[str]]]:
    """Runs `python -m loadtests judge` on a run directory."""

    async def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
        partner = service.credentials["partner"]
        environment = {
            "LOAD_AUDITOR_TOKEN": service.credentials["auditor"]["token"],
            "LOAD_PARTNER_KEY_ID": partner["key_id"],
            "LOAD_PARTNER_SECRET": partner["secret"],
        }
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "loadtests", "judge", str(directory), *options],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


async def test_the_command_judges_prints_and_writes_the_report(
    service: Service, tmp_path: Path, judged: Callable[..., Awaitable[subprocess.CompletedProcess[str]]]
) -> None:
    await run_of(service, tmp_path, 20)
    done = await judged(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "KEPT" in done.stdout
    assert str(tmp_path / "report.html") in done.stdout
    assert (tmp_path / "verdict.json").exists()
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg") == 3
    assert "p-12" not in page, "no person is named in a report"
    nobody = await judged(tmp_path, "--host", "http://127.0.0.1:9")
    assert nobody.returncode == 3
    assert "cannot be reached" in nobody.stderr
