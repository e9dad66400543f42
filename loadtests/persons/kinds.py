"""The kinds of persons that send whole requests: app, hasty partner, script, many fingers."""

from collections.abc import Iterator
from typing import Final, assert_never

from loadtests.persons.fate import token_of
from loadtests.persons.person import GRAB, NOT_STARTED, Presser, Step, Told, Who, World
from loadtests.persons.traits import App, Double, Hasty, Script, Stall, Traits, Trickle

SOLD_OUT: Final = "sold_out"
PENDING: Final = 202
CONFIRMED: Final = frozenset({200, 201})


class AppPerson(Presser):
    """Presses, waits, presses again; believes a final answer, mostly."""

    __slots__ = ("_again", "_disbelieved", "_visited")
    traits: App

    def __init__(self, world: World, traits: App, who: Who, place: int, due_s: float) -> None:
        super().__init__(world, traits, who, place, due_s)
        self._again = True
        """Whether it may still be greedy or repeat."""
        self._disbelieved = False
        self._visited = 1

    def _next(self, step: Step, told: Told) -> Step | None:
        if told.code == NOT_STARTED:
            return self._await_opening(step, told)
        if told.status in CONFIRMED:
            return self._once_more(step, told)
        if told.code == SOLD_OUT and not told.retryable:
            return self._disappointed(told)
        return self._ask_again(step, told)

    def _once_more(self, step: Step, told: Told) -> Step | None:
        """With a voucher in hand: its partner repeats the number, or the person tries for another."""
        if not self._again:
            return None
        self._again = False
        chance = self.chance()
        if chance < self.traits.repeat_share:
            return step._replace(due_s=self._back_off(told), what=GRAB, timeout_s=None)
        if chance < self.traits.repeat_share + self.traits.greed_share:
            return self._press(self._back_off(told))
        return None

    def _disappointed(self, told: Told) -> Step | None:
        places = len(self.world.places)
        if self._visited < places and self.chance() < self.traits.other_drop_share:
            self._visited += 1
            return self._press(self._back_off(told), place=(self.place + 1) % places)
        if not self._disbelieved and self.chance() < self.traits.disbelief_share:
            self._disbelieved = True
            return self._press(self._back_off(told))
        return None


class HastyPartner(Presser):
    """Hangs up after a moment and repeats the number, a few times; then waits."""

    __slots__ = ()
    traits: Hasty

    def first(self) -> Step:
        """The first press, with little patience."""
        return super().first()._replace(timeout_s=self._timeout_s())

    def _next(self, step: Step, told: Told) -> Step | None:
        if told.code == NOT_STARTED:
            return self._await_opening(step, told)
        again = self._ask_again(step, told)
        if again is None or told.status == PENDING:
            return again
        return again._replace(timeout_s=self._timeout_s())

    def _timeout_s(self) -> float | None:
        traits = self.traits
        if self._tries >= traits.hasty_tries_count:
            return None
        spread_ms = traits.timeout_max_ms - traits.timeout_min_ms
        return (traits.timeout_min_ms + spread_ms * self.chance()) / 1_000


class ScriptPerson(Presser):
    """Fires at a fixed pace whatever it is told, voucher or not."""

    __slots__ = ()
    traits: Script

    def _next(self, step: Step, told: Told) -> Step | None:
        due_s = max(step.due_s + self.traits.every_ms / 1_000, told.now_s)
        if self.chance() < self.traits.new_number_share:
            return self._press(due_s)
        return step._replace(due_s=due_s)


class Finger(Presser):
    """One of several devices of a person: asks until its own number has an answer."""

    __slots__ = ()

    def _next(self, step: Step, told: Told) -> Step | None:
        if told.code == NOT_STARTED:
            return self._await_opening(step, told)
        return self._ask_again(step, told)


class SlowPartner(Presser):
    """Sends one request in its own slow way (see `loadtests.driver.slow`) and is gone."""

    __slots__ = ()

    def _next(self, step: Step, told: Told) -> Step | None:  # noqa: ARG002 - it learns nothing
        return None


def people(world: World, traits: Traits, person: int, place: int, due_s: float) -> Iterator[Presser]:
    """The person, or each of its fingers, ready to press."""
    who = Who(person, token_of(world.run, person))
    match traits:
        case App():
            yield AppPerson(world, traits, who, place, due_s)
        case Hasty():
            yield HastyPartner(world, traits, who, place, due_s)
        case Script():
            start_s = min(due_s, world.places[place].opens_s - traits.early_s)
            yield ScriptPerson(world, traits, who, place, start_s)
        case Double():
            for finger in range(traits.fingers_count):
                late_s = traits.spread_ms / 1_000 * finger / traits.fingers_count
                yield Finger(world, traits, who._replace(finger=finger), place, due_s + late_s)
        case Trickle() | Stall():
            yield SlowPartner(world, traits, who, place, due_s)
        case _:
            assert_never(traits)
