"""Schedules are pure: the same number makes the same plan, and neighbouring numbers see everything."""

import re
from functools import cache
from pathlib import Path

import pytest

import couponsvc
from tests.faults.harness.fault_kinds import CLASSES, KINDS, ORDERS, POINTS, Capabilities
from tests.faults.harness.inflictions import INFLICTIONS
from tests.faults.harness.plan import (
    CONTESTED,
    FAULTS_MIN_COUNT,
    LARGE,
    LOWERED,
    RESTOCKED,
    CrowdPlan,
    Plan,
    make_plan,
    seeds_per_deck,
    with_crowd,
)

EVERYTHING = Capabilities()
SECONDS = 20.0
SEEDS = range(200)
DECLARED = re.compile(r'= kill_point\("([a-z._]+)"\)')


@cache
def plans() -> list[Plan]:
    return [make_plan(seed, SECONDS, EVERYTHING) for seed in SEEDS]


def test_the_same_seed_makes_the_same_plan_and_another_one_another() -> None:
    assert [make_plan(seed, SECONDS, EVERYTHING) for seed in SEEDS] == plans()
    assert len({plan.text() for plan in plans()}) == len(SEEDS)


def test_every_schedule_has_several_faults_that_begin_and_end_within_it() -> None:
    for plan in plans():
        assert len(plan.faults) >= FAULTS_MIN_COUNT
        for fault in plan.faults:
            assert fault.at_s > 0
            assert fault.at_s + fault.lasts_s <= SECONDS + 0.01


def test_most_schedules_have_faults_that_overlap() -> None:
    overlapping = [
        plan
        for plan in plans()
        if any(
            later.at_s < earlier.at_s + earlier.lasts_s
            for place, earlier in enumerate(plan.faults)
            for later in plan.faults[place + 1 :]
        )
    ]
    assert len(overlapping) > 0.9 * len(SEEDS)


def test_seeds_that_share_a_deck_see_every_kind_between_them() -> None:
    count = seeds_per_deck(SECONDS, EVERYTHING)
    for first in range(0, len(SEEDS), count):
        seen = {fault.kind for seed in range(first, first + count) for fault in plans()[seed].faults}
        assert seen == set(KINDS)


def test_what_a_machine_cannot_do_is_in_no_plan_and_the_rest_still_is() -> None:
    poor = Capabilities(replica=False, clocks=False)
    seen = {fault.kind for seed in SEEDS for fault in make_plan(seed, SECONDS, poor).faults}
    assert seen == {name for name, kind in KINDS.items() if not kind.needs}
    assert {KINDS[kind].fault_class for kind in seen} == CLASSES - {"clock"}


def test_every_kind_can_be_carried_out_and_nothing_else_can() -> None:
    assert set(INFLICTIONS) == set(KINDS)


def test_every_kill_point_of_the_service_is_drawn_with_every_order() -> None:
    drawn = {
        (fault.details["point"], fault.details["order"])
        for seed in range(900)
        for fault in make_plan(seed, SECONDS, EVERYTHING).faults
        if "point" in fault.details
    }
    assert drawn == {(point, order) for point in POINTS for order in ORDERS}


def test_the_plan_knows_exactly_the_kill_points_that_the_service_has() -> None:
    source = Path(couponsvc.__file__).parent
    found = {name for path in source.rglob("*.py") for name in DECLARED.findall(path.read_text("utf-8"))}
    assert set(POINTS) == found


def test_operators_restock_lower_pause_and_resume_in_every_run() -> None:
    for plan in plans():
        changes = {(change.what, change.role) for change in plan.changes}
        expected = {("restock", RESTOCKED), ("pause", RESTOCKED), ("resume", RESTOCKED), ("lower", LOWERED)}
        assert expected <= changes
        assert all(0 < change.at_s < SECONDS for change in plan.changes)


def test_contested_drops_are_small_enough_to_sell_out_and_shrink_with_shorter_runs() -> None:
    for seed in SEEDS:
        long, short = make_plan(seed, SECONDS, EVERYTHING), make_plan(seed, SECONDS / 4, EVERYTHING)
        assert long.drop(CONTESTED).quantity <= 3_000
        assert short.drop(CONTESTED).quantity <= 750


def test_another_crowd_presses_in_the_same_schedule() -> None:
    for seed in SEEDS:
        usual = make_plan(seed, SECONDS, EVERYTHING)
        assert with_crowd(usual, CrowdPlan()) == usual
        other = with_crowd(usual, CrowdPlan(lanes_count=40, pause_s=0.5, large_share=0.9))
        assert (other.faults, other.changes) == (usual.faults, usual.changes)
        assert other.drop(LARGE).share == 0.9
        assert sum(drop.share for drop in other.drops) == pytest.approx(1, abs=1e-3)
        assert [drop.quantity for drop in other.drops] == [drop.quantity for drop in usual.drops]
        scarce = with_crowd(usual, CrowdPlan(stock=0.25))
        assert scarce.drop(LARGE).quantity == usual.drop(LARGE).quantity
        assert scarce.drop(CONTESTED).quantity <= usual.drop(CONTESTED).quantity / 4 + 1
