"""A load test as an operator runs it: locust, records, oracle, report, exit code; nothing is left behind.

Locust patches the standard library when it is imported, so it runs in processes of its own.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from loadtests.records import RunFacts, read_facts, read_records

from tests.faults.up_process import clean_environment, running

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150)]

ROOT = Path(__file__).parents[2]
SCENARIO = """\
scenario: small
says: A few of every kind come for little.
loop: closed
persons: 300
lasts_s: 12
lanes: 16
arrival: {curve: rush, early_share: 0.1, early_s: 1, median_s: 0.8, sigma: 0.8, within_s: 4}
drops:
  - {name: one, stock_per_person: 0.2, demand: 0.7}
  - {name: two, stock_per_person: 0.2, demand: 0.3, opens_s: 1, per_person_limit: 2}
operations:
  - {at_s: 2, drop: two, what: pause}
  - {at_s: 3, drop: two, what: resume}
  - {at_s: 4, drop: one, what: restock, stock_per_person: 0.05}
mixture:
  - {share: 0.68, person: {kind: app, patience_s: 6}}
  - {share: 0.15, person: {kind: hasty, timeout_min_ms: 0.2, timeout_max_ms: 2, pause_s: 0.1}}
  - {share: 0.10, person: {kind: double, fingers_count: 4}}
  - {share: 0.03, person: {kind: script, early_s: 1, tries_max_count: 15}}
  - {share: 0.03, person: {kind: trickle, every_ms: 50, hold_s: 1}}
  - {share: 0.01, person: {kind: stall, requests_count: 10, hold_s: 1}}
budgets:
  {p50_ms: 5000, p99_ms: 10000, errors_share: 0, unanswered_share: 0.01, overloaded_share: 0.5}
"""


def loadtests(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in clean_environment().items() if not name.startswith("LOAD_")}
    return subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "loadtests", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**inherited, **(environment or {})},
    )


def test_a_small_run_against_a_real_deployment_is_judged_and_kept(tmp_path: Path) -> None:
    scenario, run_dir = tmp_path / "small.yaml", tmp_path / "run"
    scenario.write_text(SCENARIO, "utf-8")
    with running(tmp_path / "data") as up:
        up.wait_until_ready()
        credentials = tmp_path / "data" / "credentials.json"
        there = ("--host", up.run_file()["url"], "--credentials", credentials)
        ran = loadtests("run", scenario, *there, "--run-dir", run_dir)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "KEPT" in ran.stdout
    assert "<svg" in (run_dir / "report.html").read_text("utf-8")
    verdict = msgspec.json.decode((run_dir / "verdict.json").read_bytes())
    assert verdict["findings"]
    facts = read_facts(run_dir)
    check_facts(facts)
    check_records(run_dir, facts)
    check_no_secret(run_dir, credentials, ran.stdout + ran.stderr)


def check_facts(facts: RunFacts) -> None:
    assert facts.complete
    assert [operation.what for operation in facts.operations] == ["pause", "resume", "restock"]
    assert set(facts.clocks) == {"w0", "w1"}, "both workers measured the deployment's clock"
    assert all(clock.tolerance_ms < 500 for clock in facts.clocks.values())


def check_records(run_dir: Path, facts: RunFacts) -> None:
    records = list(read_records(sorted(run_dir.glob("records-*.bin"))))
    assert {record.worker for record in records} == {"w0", "w1"}
    assert {record.action for record in records} >= {"grab", "trickle", "stall"}
    assert {record.status for record in records} >= {0, 200, 201, 409}
    assert {"not_started", "sold_out", "person_limit"} <= {record.code for record in records}
    tokens = {record.person_token for record in records if record.action != "stall"}
    assert len(tokens) >= 0.98 * facts.persons, "everybody came"
    abandoned = {record.out_request_no for record in records if record.code == "abandoned"}
    answered = {record.out_request_no for record in records if record.status}
    assert abandoned & answered, "who hangs up repeats the same number and gets its answer"


def check_no_secret(run_dir: Path, credentials: Path, output: str) -> None:
    content = msgspec.json.decode(credentials.read_bytes())
    secrets = [content["operator"]["token"], content["auditor"]["token"], content["partner"]["secret"]]
    written = output.encode() + b"".join(path.read_bytes() for path in run_dir.iterdir())
    assert not [secret for secret in secrets if secret.encode() in written]
    assert not re.search(r"p-[0-9a-f]{20}", output), "a person's token is nobody's business"


def test_a_deployment_that_is_not_there_is_exit_code_3(tmp_path: Path) -> None:
    partner = {
        "LOAD_PARTNER_ID": "bank-a",
        "LOAD_PARTNER_KEY_ID": "key",
        "LOAD_PARTNER_SECRET": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA==",
        "LOAD_OPERATOR_TOKEN": "operator",
        "LOAD_AUDITOR_TOKEN": "auditor",
    }
    there = ("--host", "http://127.0.0.1:1", "--processes", "1")
    ran = loadtests("run", "rush", *there, "--run-dir", tmp_path, environment=partner)
    assert ran.returncode == 3, ran.stdout + ran.stderr
    assert "127.0.0.1:1" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "rsuh", "--host", "http://127.0.0.1:1"), "choose one of"),
        (("run", "rush", "--host", "http://127.0.0.1:1"), "no partner's key"),
        (("run", "rush", "--rate", "5", "--host", "http://127.0.0.1:1"), "--rate needs the curve"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments: tuple[str, ...], says: str) -> None:
    ran = loadtests(*arguments, "--processes", "1")
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
