"""What persons do next: told an answer, they repeat, look up, try anew or go home."""

import pytest
from loadtests.persons.kinds import people
from loadtests.persons.person import GRAB, LOOK_UP, Place, Presser, Step, Told, World
from loadtests.persons.traits import App, Double, Hasty, Script, Traits

WORLD = World(seed=3, run="run", places=[Place("first", 0.0), Place("second", 0.0)])
BELIEVES = App(greed_share=0, repeat_share=0, disbelief_share=0, other_drop_share=0)


def somebody(traits: Traits = BELIEVES, due_s: float = 1.0) -> Presser:
    return next(people(WORLD, traits, person=5, place=0, due_s=due_s))


def ask(presser: Presser, told: Told) -> tuple[Step, Step | None]:
    step = presser.first()
    return step, presser.told(step, told)


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503, 504])
def test_without_an_answer_the_same_number_is_sent_again(status: int) -> None:
    step, again = ask(somebody(), Told(2.0, status))
    assert again is not None
    assert (again.number, again.what, again.place) == (step.number, GRAB, step.place)
    assert again.due_s > 2.0


def test_nobody_comes_back_before_retry_after() -> None:
    _, again = ask(somebody(), Told(2.0, 503, "overloaded", retryable=True, retry_after_s=3.0))
    assert again is not None
    assert 5.0 <= again.due_s <= 5.75


def test_pauses_grow() -> None:
    presser, told, pauses = somebody(App(tries_max_count=9, patience_s=1e6)), 0.0, []
    step: Step | None = presser.first()
    for _ in range(8):
        assert step is not None
        step = presser.told(step, Told(told, 503))
        assert step is not None
        pauses.append(step.due_s - told)
        told = step.due_s
    assert pauses[-1] > 4 * pauses[0]
    assert max(pauses) <= 0.4 * 10 * 1.5 * 1.25


def test_what_is_pending_is_looked_up_and_what_is_unknown_is_sent_again() -> None:
    presser = somebody()
    step = presser.first()
    looked = presser.told(step, Told(1.1, 202))
    assert looked is not None
    assert (looked.what, looked.number) == (LOOK_UP, step.number)
    sent = presser.told(looked, Told(1.2, 404, "unknown_request", retryable=True))
    assert sent is not None
    assert (sent.what, sent.number) == (GRAB, step.number)


@pytest.mark.parametrize(
    "told",
    [
        Told(2.0, 201),
        Told(2.0, 200),
        Told(2.0, 409, "sold_out"),
        Told(2.0, 409, "person_limit"),
        Told(2.0, 409, "ended"),
        Told(2.0, 403, "not_eligible"),
        Told(2.0, 401, "unauthenticated"),
    ],
)
def test_a_final_answer_sends_a_believer_home(told: Told) -> None:
    assert ask(somebody(), told)[1] is None


@pytest.mark.parametrize("code", ["sold_out", "person_limit", "paused"])
def test_a_refusal_that_may_change_is_asked_again_with_the_same_number(code: str) -> None:
    step, again = ask(somebody(), Told(2.0, 409, code, retryable=True))
    assert again is not None
    assert again.number == step.number


def test_whoever_is_early_presses_again_and_at_the_opening() -> None:
    presser = somebody(App(tries_max_count=2), due_s=-4.0)
    step: Step | None = presser.first()
    pressed_s: list[float] = []
    while step is not None and step.due_s < 0:
        pressed_s.append(step.due_s)
        step = presser.told(step, Told(step.due_s, 409, "not_started", retryable=True, opens_s=0.0))
    assert step is not None, "a grey button costs no patience"
    assert 0.0 <= step.due_s <= 0.15
    assert len(pressed_s) > 3
    assert len({step.number}) == 1


def test_the_answer_says_when_it_opens_not_the_plan() -> None:
    _, again = ask(somebody(due_s=-0.1), Told(0.2, 409, "not_started", retryable=True, opens_s=60.0))
    assert again is not None
    assert again.due_s > 5.0


def test_greed_is_a_new_number_and_a_repetition_is_the_same() -> None:
    step, greedy = ask(somebody(App(greed_share=1.0, repeat_share=0.0)), Told(2.0, 201))
    assert greedy is not None
    assert greedy.number != step.number
    step, repeated = ask(somebody(App(greed_share=0.0, repeat_share=1.0)), Told(2.0, 201))
    assert repeated is not None
    assert repeated.number == step.number


def test_the_disappointed_try_the_other_drop_once() -> None:
    presser = somebody(App(disbelief_share=0, other_drop_share=1.0))
    step = presser.first()
    other = presser.told(step, Told(2.0, 409, "sold_out"))
    assert other is not None
    assert (step.place, other.place) == (0, 1)
    assert other.number != step.number
    assert presser.told(other, Told(3.0, 409, "sold_out")) is None


def test_patience_ends_by_tries_and_by_time() -> None:
    presser = somebody(App(tries_max_count=3))
    step = presser.first()
    assert presser.told(step, Told(2.0, 503)) is not None
    assert presser.told(step, Told(2.1, 503)) is not None
    assert presser.told(step, Told(2.2, 503)) is None
    assert ask(somebody(App(patience_s=5.0)), Told(6.1, 503))[1] is None


def test_a_hasty_partner_hangs_up_early_a_few_times_and_then_waits() -> None:
    presser = somebody(Hasty(timeout_min_ms=50, timeout_max_ms=150, hasty_tries_count=2))
    first = presser.first()
    second = presser.told(first, Told(1.1, 0))
    assert second is not None
    third = presser.told(second, Told(1.5, 0))
    assert third is not None
    assert first.number == second.number == third.number
    assert first.timeout_s is not None
    assert second.timeout_s is not None
    assert 0.05 <= first.timeout_s <= 0.15
    assert first.timeout_s != second.timeout_s
    assert third.timeout_s is None


def test_a_script_fires_on_at_its_own_pace_whatever_it_is_told() -> None:
    traits = Script(every_ms=100, early_s=2, new_number_share=0.5, tries_max_count=40)
    presser = somebody(traits)
    step: Step | None = presser.first()
    assert step is not None
    assert step.due_s == -2.0
    numbers, shots = set(), 0
    answers = (409, "sold_out"), (201, ""), (503, "overloaded"), (0, "")
    while step is not None:
        shots += 1
        numbers.add(step.number)
        status, code = answers[shots % len(answers)]
        following = presser.told(step, Told(step.due_s + 0.01, status, code, retry_after_s=5.0))
        if following is not None:
            assert following.due_s == pytest.approx(step.due_s + 0.1)
        step = following
    assert shots == 40
    assert 10 < len(numbers) < 35


def test_fingers_share_the_person_and_never_a_number() -> None:
    fingers = list(people(WORLD, Double(fingers_count=8, spread_ms=20), person=9, place=0, due_s=1.0))
    assert len({finger.who.token for finger in fingers}) == 1
    assert len({finger.first().number for finger in fingers}) == 8
    assert max(finger.due_s for finger in fingers) < 1.02
