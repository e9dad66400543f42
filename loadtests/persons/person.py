"""A person: told an answer, says what to send next and when. No clock, no network, no threads.

Time is the run's: seconds since the opening of the run, by the deployment's clock. A number is
made for every press of the button and kept for every repetition of it, as a partner would do it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from loadtests.persons.fate import FIRST_FREE, fate
from loadtests.persons.traits import Traits

GRAB: Final = "grab"
LOOK_UP: Final = "look_up"
UNKNOWN_REQUEST: Final = "unknown_request"
NOT_STARTED: Final = "not_started"
UNSETTLED: Final = frozenset({0, 202, 429, 500, 502, 503, 504})
"""The number has no answer yet: ask again with the same one."""
_PAUSE_GROWTH_MAX: Final = 10.0
_DRAWS_PER_FINGER: Final = 4_096
"""Far more than one finger makes, so that no two fingers of a person share a draw."""
_FAR_SHARE: Final = 0.3
"""Of what the countdown still shows, somebody waits at least this before pressing again."""
_FINGER_S: Final = 0.15
"""How far behind the countdown a waiting finger presses."""


class Place(NamedTuple):
    """A drop, as far as persons care."""

    drop_id: str
    opens_s: float


class World(NamedTuple):
    """What all persons of a run share."""

    seed: int
    run: str
    """Prefix of every number: two runs never share one."""
    places: Sequence[Place]


class Step(NamedTuple):
    """One request to be sent."""

    due_s: float
    what: str
    """GRAB or LOOK_UP."""
    place: int
    """Which of the world's places."""
    number: str
    timeout_s: float | None = None
    """Hang up after this; None: wait as long as the service may take."""


class Told(NamedTuple):
    """What the person learns of an answer."""

    now_s: float
    status: int
    """0: nothing was answered."""
    code: str = ""
    retryable: bool = False
    retry_after_s: float = 0.0
    opens_s: float | None = None
    """Where the answer said when the drop opens."""


class Who(NamedTuple):
    """A person of the run, or one of its fingers."""

    person: int
    """Which of the run."""
    token: str
    """The person token; fingers of one person share it."""
    finger: int = 0
    """Tells apart the numbers of several fingers."""


class Presser:
    """What persons have in common: numbers, patience, back-off.

    Args:
        world: Shared by all.
        traits: Of its kind.
        who: Which person of the run.
        place: Which drop it wants.
        due_s: When it presses first.
    """

    __slots__ = (
        "_draws",
        "_gives_up_s",
        "_pause_s",
        "_presses",
        "_tries",
        "due_s",
        "place",
        "traits",
        "who",
        "world",
    )
    traits: Traits

    def __init__(self, world: World, traits: Traits, who: Who, place: int, due_s: float) -> None:
        self.world = world
        self.traits = traits
        self.who = who
        self.place = place
        self.due_s = due_s
        self._presses = 0
        self._tries = 0
        self._draws = FIRST_FREE + _DRAWS_PER_FINGER * who.finger
        self._pause_s = traits.pause_s
        self._gives_up_s = max(due_s, world.places[place].opens_s) + traits.patience_s

    def first(self) -> Step:
        """The first press."""
        return self._press(self.due_s)

    def told(self, step: Step, told: Told) -> Step | None:
        """The next request; None once patience is at its end."""
        if told.code != NOT_STARTED:  # pressing on a grey button costs nobody's patience
            self._tries += 1
        if self._tries >= self.traits.tries_max_count or told.now_s >= self._gives_up_s:
            return None
        return self._next(step, told)

    def _next(self, step: Step, told: Told) -> Step | None:
        """What this kind of person does then."""
        raise NotImplementedError

    def chance(self) -> float:
        """This person's next draw, in [0, 1)."""
        self._draws += 1
        return fate(self.world.seed, self.who.person, self._draws)

    def _press(self, due_s: float, place: int | None = None, timeout_s: float | None = None) -> Step:
        """Press the button: a new number."""
        if place is not None:
            self.place = place
        self._presses += 1
        self._pause_s = self.traits.pause_s
        mark = f"f{self.who.finger}" if self.who.finger else ""
        return Step(
            due_s, GRAB, self.place, f"{self.world.run}-{self.who.person}{mark}-{self._presses}", timeout_s
        )

    def _back_off(self, told: Told) -> float:
        """When to ask again: never before `Retry-After`, and later each time."""
        wait_s = max(told.retry_after_s, self._pause_s * (0.5 + self.chance()))
        self._pause_s = min(self._pause_s * 2, self.traits.pause_s * _PAUSE_GROWTH_MAX)
        return told.now_s + wait_s * (1.0 + 0.25 * self.chance())

    def _ask_again(self, step: Step, told: Told) -> Step | None:
        """The same number again where it has no answer yet, or one that may change; else None."""
        if told.code == UNKNOWN_REQUEST:
            return step._replace(due_s=self._back_off(told), what=GRAB, timeout_s=None)
        if told.status == 202:  # noqa: PLR2004 - decided, not yet committed: look it up
            return step._replace(due_s=self._back_off(told), what=LOOK_UP, timeout_s=None)
        if told.status in UNSETTLED or told.retryable:
            return step._replace(due_s=self._back_off(told))
        return None

    def _await_opening(self, step: Step, told: Told) -> Step:
        """Press on a grey button again and again, and once the countdown is over."""
        opens_s = self.world.places[step.place].opens_s if told.opens_s is None else told.opens_s
        remaining_s = opens_s - told.now_s
        pause_s = max(self.traits.pause_s, _FAR_SHARE * remaining_s)
        impatient_s = told.now_s + pause_s * (0.5 + self.chance())
        at_once_s = opens_s + _FINGER_S * self.chance()
        return step._replace(due_s=min(impatient_s, max(at_once_s, told.now_s)))
