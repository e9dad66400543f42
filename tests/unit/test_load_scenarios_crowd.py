"""The crowd: the same for any number of workers, and arriving as the scenario says."""

from collections import Counter
from statistics import median

import pytest
from loadtests.persons.crowd import Crowd, arrival_s
from loadtests.persons.fate import fate
from loadtests.persons.person import Place
from loadtests.scenario import Arrival, Scenario, load_scenario

RUSH = Arrival(curve="rush", within_s=20, early_share=0.1, early_s=4, median_s=1.5, sigma=0.8)
EVEN = Arrival(curve="even", within_s=30, from_s=2)
CHANCES = [(place + 0.5) / 10_000 for place in range(10_000)]


def crowd(scenario: Scenario, persons_count: int, seed: int = 1) -> Crowd:
    places = [
        Place(f"{drop.name}-{number}", drop.opens_s)
        for drop in scenario.drops
        for number in range(drop.count)
    ]
    return Crowd(scenario, persons_count, seed, "run", places)


@pytest.mark.parametrize("name", ["rush", "double_press", "many_drops", "mixed_day", "slow_partner"])
@pytest.mark.parametrize("workers_count", [2, 3, 7])
def test_any_number_of_workers_plays_the_same_crowd(name: str, workers_count: int) -> None:
    whole = crowd(load_scenario(name), 300)
    alone = [presser.first() for presser in whole.part(0, 1)]
    divided = [
        presser.first() for place in range(workers_count) for presser in whole.part(place, workers_count)
    ]
    assert sorted(alone) == sorted(divided)
    assert len({step.number for step in alone}) == len(alone)


def test_another_seed_is_another_crowd() -> None:
    rush = load_scenario("rush")
    first, again, other = (crowd(rush, 200, seed).part(0, 1) for seed in (1, 1, 2))
    assert [presser.first() for presser in first] == [presser.first() for presser in again]
    assert [presser.first() for presser in first] != [presser.first() for presser in other]


def test_persons_come_to_a_worker_in_the_order_of_their_first_press() -> None:
    due = [presser.due_s for presser in crowd(load_scenario("rush"), 500).part(1, 2)]
    assert due == sorted(due)


def test_fingers_of_one_person_press_from_different_workers_under_one_token() -> None:
    whole = crowd(load_scenario("double_press"), 40)
    of_token: dict[str, set[int]] = {}
    for place in range(2):
        for presser in whole.part(place, 2):
            of_token.setdefault(presser.who.token, set()).add(place)
    assert len(of_token) == 40
    assert set(map(frozenset, of_token.values())) == {frozenset({0, 1})}


def test_a_rush_comes_early_mostly_at_once_and_has_an_end() -> None:
    came = [arrival_s(RUSH, chance) for chance in CHANCES]
    early = [moment for moment in came if moment < 0]
    late = [moment for moment in came if moment >= 0]
    assert len(early) == 1_000
    assert min(early) >= -4
    assert sum(moment > -2 for moment in early) == pytest.approx(750, abs=2)  # rising towards the opening
    assert median(late) == pytest.approx(1.5, rel=0.02)
    assert max(late) <= 20


def test_an_even_arrival_has_the_same_rate_all_the_time() -> None:
    per_second = Counter(int(arrival_s(EVEN, chance)) for chance in CHANCES)
    assert set(per_second) == set(range(2, 32))
    assert max(per_second.values()) - min(per_second.values()) <= 1


def test_chance_is_even_and_does_not_repeat_itself() -> None:
    drawn = [fate(7, person, what) for person in range(100) for what in range(100)]
    assert len(set(drawn)) == len(drawn)
    tenths = Counter(int(value * 10) for value in drawn)
    assert min(tenths.values()) > 850
    assert max(tenths.values()) < 1_150


def test_persons_come_for_drops_as_the_demand_says() -> None:
    whole = crowd(load_scenario("rush"), 5_000)
    wanted = Counter(presser.place for presser in whole.part(0, 1) if presser.who.finger == 0)
    assert [wanted[place] / 5_000 for place in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
