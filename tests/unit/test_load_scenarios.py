"""Scenario files are read strictly, and those that ship hold together."""

from pathlib import Path

import pytest
from loadtests.scenario import Scenario, ScenarioError, load_scenario, names

NAMES = {
    "rush",
    "sold_out_storm",
    "retry_storm",
    "double_press",
    "many_drops",
    "slow_partner",
    "steady",
    "mixed_day",
}
SMALL = """\
scenario: small
says: Few come.
loop: closed
persons: 10
lasts_s: 5
lanes: 2
arrival: {curve: even, within_s: 1}
drops: [{name: one, stock_per_person: 0.5}]
mixture: [{share: 1.0, person: {kind: app}}]
budgets: {p50_ms: 100, p99_ms: 500, errors_share: 0, unanswered_share: 0}
"""


def read(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "small.yaml"
    path.write_text(text, "utf-8")
    return load_scenario(str(path))


def test_every_scenario_is_there_under_its_own_name() -> None:
    assert set(names()) == NAMES
    assert {load_scenario(name).scenario for name in names()} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_scenario_grants_something_to_the_smallest_crowd_of_ten(name: str) -> None:
    scenario = load_scenario(name)
    assert all(scenario.quantity(drop, 10) >= 1 for drop in scenario.drops)


@pytest.mark.parametrize("name", sorted(NAMES - {"slow_partner"}))
def test_nobody_but_slow_partners_is_slow(name: str) -> None:
    kinds = {type(kind.person).__name__ for kind in load_scenario(name).mixture}
    assert not kinds & {"Trickle", "Stall"}


def test_stock_is_in_proportion_to_the_crowd(tmp_path: Path) -> None:
    scenario = read(tmp_path, SMALL)
    assert [scenario.quantity(scenario.drops[0], count) for count in (1, 10, 10_000)] == [1, 5, 5_000]


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("lanes: 2", "lanes: 0", "lanes"),
        ("lanes: 2", "lane: 2", "lane"),
        ("p50_ms: 100", "p51_ms: 100", "p51_ms"),
        ("share: 1.0", "share: 0.9", "add up to 0.9"),
        ("kind: app", "kind: ghost", "ghost"),
        ("kind: app", "kind: app, every_ms: 3", "every_ms"),
        ("{name: one, stock_per_person: 0.5}", "{name: one}", "stock_per_person"),
        ("{name: one, stock_per_person: 0.5}", "{name: one, stock_per_person: 1, opens_s: 9}", "opens after"),
        ("persons: 10", "persons: 10\noperations: [{at_s: 1, drop: two, what: pause}]", "unknown drop"),
        ("persons: 10", "persons: 10\noperations: [{at_s: 1, drop: one, what: restock}]", "stock_per_person"),
        ("persons: 10", "persons: 10\noperations: [{at_s: 9, drop: one, what: pause}]", "after the end"),
        ("within_s: 1", "within_s: 1, early_share: 0.5", "early_s"),
        ("says: Few come.", "says: [", "small.yaml"),
    ],
)
def test_what_does_not_hold_together_is_refused_by_name(
    tmp_path: Path, wrong: str, right: str, says: str
) -> None:
    assert wrong in SMALL
    with pytest.raises(ScenarioError, match=says) as refused:
        read(tmp_path, SMALL.replace(wrong, right))
    assert "\n" not in str(refused.value)


def test_an_unknown_scenario_names_those_there_are() -> None:
    with pytest.raises(ScenarioError, match=r"choose one of .*rush"):
        load_scenario("rsuh")
