"""Who comes, when, and for which drop: drawn from the seed, the same for any number of workers."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import exp, log, sqrt
from statistics import NormalDist
from typing import Final

from loadtests.persons.fate import ARRIVAL, DROP, KIND, WHICH_OF_COUNT, fate
from loadtests.persons.kinds import people
from loadtests.persons.person import Place, Presser, World
from loadtests.persons.traits import Double, Traits
from loadtests.scenario import Arrival, Scenario

_NORMAL: Final = NormalDist()
_BREATH_COUNT: Final = 256
"""Persons made at a stretch: about 10 ms."""


def arrival_s(arrival: Arrival, chance: float) -> float:
    """When somebody presses first, in seconds from the opening of the drop; negative: before it.

    `rush` before the opening rises linearly towards it. After it, the log-normal distribution is
    the usual shape of human reaction times and of bursts that decay; `within_s` cuts its tail off
    (inverse of the truncated distribution, so that nobody is drawn twice).
    """
    if arrival.curve == "even":
        return arrival.from_s + arrival.within_s * chance
    if chance < arrival.early_share:
        return -arrival.early_s * (1.0 - sqrt(chance / arrival.early_share))
    late = (chance - arrival.early_share) / (1.0 - arrival.early_share)
    whole = _NORMAL.cdf(log(arrival.within_s / arrival.median_s) / arrival.sigma)
    below = max(late * whole, 1e-12)
    return min(arrival.median_s * exp(arrival.sigma * _NORMAL.inv_cdf(below)), arrival.within_s)


class Crowd:
    """All persons of a run; `places` are the run's drops in the order of the scenario's.

    Args:
        scenario: What happens.
        persons_count: Of the whole run.
        seed: Of every draw.
        run: Prefix of every number.
        places: Where the drops are: `count` of each kind, one after the other.
    """

    def __init__(
        self, scenario: Scenario, persons_count: int, seed: int, run: str, places: Sequence[Place]
    ) -> None:
        assert len(places) == sum(drop.count for drop in scenario.drops)  # noqa: S101
        self.world: Final = World(seed, run, places)
        self._persons_count: Final = persons_count
        self._arrival: Final = scenario.arrival
        self._kinds: Final = [kind.person for kind in scenario.mixture]
        self._kinds_upto: Final = list(accumulate(kind.share for kind in scenario.mixture))
        self._counts: Final = [drop.count for drop in scenario.drops]
        self._starts: Final = [0, *accumulate(self._counts)]
        total = sum(drop.demand for drop in scenario.drops)
        self._demand_upto: Final = list(accumulate(drop.demand / total for drop in scenario.drops))

    def part(
        self, place: int, workers_count: int, breathe: Callable[[], None] = lambda: None
    ) -> list[Presser]:
        """The persons and fingers that one worker plays, by when they press first.

        Fingers of one person are spread over the workers: they must meet in the deployment, not
        in one process of ours.

        Args:
            place: Which worker, from 0.
            workers_count: Of the run.
            breathe: Called now and then; a large crowd takes seconds.
        """
        mine: list[Presser] = []
        for person in range(self._persons_count):
            if person % _BREATH_COUNT == 0:
                breathe()
            if self._fingers_of(person) > (place - person) % workers_count:
                mine += [
                    presser
                    for presser in self._person(person)
                    if (person + presser.who.finger) % workers_count == place
                ]
        mine.sort(key=lambda presser: (presser.due_s, presser.who))
        return mine

    def _kind_of(self, person: int) -> Traits:
        return self._kinds[_slot(self._kinds_upto, fate(self.world.seed, person, KIND))]

    def _fingers_of(self, person: int) -> int:
        kind = self._kind_of(person)
        return kind.fingers_count if isinstance(kind, Double) else 1

    def _person(self, person: int) -> Iterator[Presser]:
        seed = self.world.seed
        place = self._wanted(person)
        opens_s = self.world.places[place].opens_s
        due_s = opens_s + arrival_s(self._arrival, fate(seed, person, ARRIVAL))
        yield from people(self.world, self._kind_of(person), person, place, due_s)

    def _wanted(self, person: int) -> int:
        seed = self.world.seed
        drop = _slot(self._demand_upto, fate(seed, person, DROP))
        return self._starts[drop] + int(self._counts[drop] * fate(seed, person, WHICH_OF_COUNT))


def _slot(upto: Sequence[float], chance: float) -> int:
    """The first slot whose upper end is above `chance`; shares may add up to a hair less than 1."""
    for slot, end in enumerate(upto):
        if chance < end:
            return slot
    return len(upto) - 1
