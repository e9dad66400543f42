"""The deployment's clock, as it is read from vouchers; credentials and plans, as they are read from files."""

from pathlib import Path

import msgspec
import pytest
from loadtests.access import AccessError, read_access, read_operator
from loadtests.clock import ASSUMED, Exchange, RunClock, measure
from loadtests.plan import Plan, PlanError, PlannedDrop, read_plan, write_plan

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
FILE = {
    "operator": {"token": "op"},
    "auditor": {"token": "au"},
    "partner": {"partner_id": "bank-a", "key_id": "key-1", "secret": SECRET, "token": "pt"},
}


def exchange(true_offset_ms: float, sent_ms: float, there_ms: float, back_ms: float) -> Exchange:
    decided_ms = sent_ms + there_ms
    return Exchange(sent_ms, float(int(decided_ms + true_offset_ms)), decided_ms + back_ms)


@pytest.mark.parametrize("true_offset_ms", [-86_400_000.0, -300.25, 0.0, 12.5, 4_000.0])
def test_the_true_offset_lies_within_the_tolerance(true_offset_ms: float) -> None:
    ways = [(40.0, 2.0), (3.0, 50.0), (8.0, 9.0), (1.0, 30.0)]
    found = measure(
        [exchange(true_offset_ms, 1_000.3 * turn, *way) for turn, way in enumerate(ways, start=1)]
    )
    assert abs(found.offset_ms - true_offset_ms) <= found.tolerance_ms
    assert found.tolerance_ms <= 5.0, "the quickest way there and the quickest way back decide"


def test_a_clock_that_was_set_meanwhile_is_known_less_well() -> None:
    found = measure([exchange(0.0, 1_000, 1, 1), exchange(500.0, 2_000, 1, 1)])
    assert found.tolerance_ms > 249
    assert 0 < found.offset_ms < 500


def test_without_any_voucher_nothing_is_pretended() -> None:
    assert measure([]) == ASSUMED


def test_the_opening_is_the_deployments() -> None:
    clock = RunClock()
    clock.aim(opens_ms=clock.wall_ms() + 10_000 + 700, offset_ms=700)
    assert clock.now_s() == pytest.approx(-10, abs=0.2)
    assert clock.at_ms(-10) == pytest.approx(clock.wall_ms(), abs=200)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    path.write_bytes(msgspec.json.encode(FILE))
    access = read_access(path, {"LOAD_AUDITOR_TOKEN": "other", "LOAD_PARTNER_KEY_ID": "key-2"})
    assert (access.operator_token, access.auditor_token, access.partner_id) == ("op", "other", "bank-a")
    assert access.key.key_id == "key-2"


def test_a_partners_key_from_the_environment_alone_is_enough() -> None:
    access = read_access(None, {"LOAD_PARTNER_KEY_ID": "key-1", "LOAD_PARTNER_SECRET": SECRET})
    assert (access.operator_token, access.auditor_token) == ("", "")
    assert access.environment() == {"LOAD_PARTNER_KEY_ID": "key-1", "LOAD_PARTNER_SECRET": SECRET}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LOAD_PARTNER_KEY_ID": "key-1"},
        {"LOAD_PARTNER_KEY_ID": "key-1", "LOAD_PARTNER_SECRET": "c2hvcnQ="},
    ],
)
def test_a_missing_or_weak_key_is_refused_without_showing_it(environment: dict[str, str]) -> None:
    with pytest.raises(AccessError) as refused:
        read_access(None, environment)
    assert "c2hvcnQ" not in str(refused.value)


def test_secrets_are_not_shown() -> None:
    access = read_access(
        None,
        {"LOAD_PARTNER_KEY_ID": "k", "LOAD_PARTNER_SECRET": SECRET, "LOAD_OPERATOR_TOKEN": "tok-operator"},
    )
    assert SECRET not in repr(access)
    assert "tok-operator" not in repr(access)


def test_preparing_needs_an_operator_and_no_partners_key() -> None:
    found = read_operator(None, {"LOAD_OPERATOR_TOKEN": "op", "LOAD_PARTNER_ID": "bank-a"})
    assert found == ("op", "bank-a")
    with pytest.raises(AccessError, match="LOAD_OPERATOR_TOKEN"):
        read_operator(None, {"LOAD_PARTNER_ID": "bank-a"})


def test_a_plan_survives_its_file_and_another_file_is_none(tmp_path: Path) -> None:
    drop = PlannedDrop(
        drop_id="l1-a", name="a", quantity=5, per_person_limit=1, opens_ms=1_000.0, closes_ms=2_000.0
    )
    plan = Plan(scenario="rush", persons=10, opens_ms=1_000.0, drops=[drop], clock_drop_id="l1-clock")
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    (tmp_path / "other.json").write_bytes(b'{"scenario": "rush"}')
    for name in ("other.json", "missing.json"):
        with pytest.raises(PlanError, match=name):
            read_plan(tmp_path / name)
