"""When a client asks again: the decisions alone; the test is the network."""

from typing import TypeVar

import pytest

from couponsvc.client import AnswerLost, ApiRefused, Retries, Unreachable
from couponsvc.client.answers import Answer
from couponsvc.client.requests import Request, act_request, look_up_request, read_request
from couponsvc.client.retrying import PATIENT, RELENTLESS, Pause, Steps, grab, insist

T = TypeVar("T")
Reply = Answer | Unreachable

READ = read_request("drops", "d1")
ONCE_ONLY = act_request("subscriptions", body={}, repeatable=False)
FOUR = Retries(attempts_max_count=4)
LOST = Answer(0, b"")
NOBODY = Unreachable("nobody listens")


def said(status: int, code: str = "", retry_after_s: float | None = None) -> Answer:
    return Answer(status, f'{{"code":"{code}","detail":"x"}}'.encode() if code else b"{}", retry_after_s)


class Network:
    """Answers the n-th request with the n-th reply, the last one for ever; notes what it saw."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.lines: list[str] = []
        self.pauses: list[float] = []

    def carry(self, steps: Steps[T]) -> T:
        step: Request | Pause | None = None
        while True:
            try:
                if step is None:
                    step = next(steps)
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    step = steps.send(LOST)
                    continue
                self.lines.append(f"{step.method.decode()} {step.target.decode()}")
                reply = self.replies[min(len(self.lines), len(self.replies)) - 1]
                step = steps.throw(reply) if isinstance(reply, Unreachable) else steps.send(reply)
            except StopIteration as end:
                found: T = end.value
                return found


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503, 504])
def test_what_may_be_repeated_is_asked_again_until_it_is_answered(status: int) -> None:
    network = Network(said(status), said(status), said(200))
    assert network.carry(insist(FOUR, READ)).status == 200
    assert (len(network.lines), len(network.pauses)) == (3, 2)


@pytest.mark.parametrize("status", [0, 500, 502, 504])
def test_what_must_not_be_done_twice_is_not_asked_again_when_it_may_have_been_done(status: int) -> None:
    network = Network(said(status))
    with pytest.raises(AnswerLost if status == 0 else ApiRefused):
        network.carry(insist(FOUR, ONCE_ONLY))
    assert len(network.lines) == 1


@pytest.mark.parametrize("reply", [said(429), said(503), NOBODY])
def test_what_was_not_done_is_asked_again_even_if_it_must_not_be_done_twice(reply: Reply) -> None:
    network = Network(reply, reply, said(201))
    assert network.carry(insist(FOUR, ONCE_ONLY)).status == 201
    assert len(network.lines) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 409, 410, 413, 422])
def test_a_refusal_by_rule_is_raised_at_once(status: int) -> None:
    network = Network(said(status, "some_rule"))
    with pytest.raises(ApiRefused, match=f"{status} some_rule: x") as raised:
        network.carry(insist(FOUR, READ))
    assert (raised.value.status, raised.value.refusal.code, len(network.lines)) == (status, "some_rule", 1)


@pytest.mark.parametrize(
    ("reply", "raised"), [(LOST, AnswerLost), (NOBODY, Unreachable), (said(503, "overloaded"), ApiRefused)]
)
def test_patience_ends_with_what_was_learnt_last(reply: Reply, raised: type[Exception]) -> None:
    network = Network(reply)
    with pytest.raises(raised):
        network.carry(insist(FOUR, READ))
    assert len(network.lines) == 4


def test_a_lost_answer_before_nobody_listened_is_not_forgotten() -> None:
    network = Network(LOST, NOBODY)
    with pytest.raises(AnswerLost):
        network.carry(insist(Retries(2), act_request("subscriptions", body={}, repeatable=True)))


def test_pauses_double_with_jitter_up_to_a_bound() -> None:
    network = Network(said(503))
    with pytest.raises(ApiRefused):
        network.carry(insist(Retries(9, pause_s=0.1, pause_max_s=2.0), READ))
    for pause_s, middle_s in zip(network.pauses, (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0), strict=True):
        assert 0.5 * middle_s <= pause_s <= 1.5 * middle_s


@pytest.mark.parametrize("patience", [PATIENT, RELENTLESS])
def test_it_waits_at_least_as_long_as_retry_after_says(patience: Retries) -> None:
    for attempt_no in range(2, 60):
        assert 5.0 <= patience.pause_before(attempt_no, said(429, retry_after_s=5.0)).seconds <= 15.0 * 1.5


TOLD_TOO_LONG = said(503, "overloaded", retry_after_s=86_400.0)


@pytest.mark.parametrize("patience", [PATIENT, Retries(4, told_max_s=5.0)])
def test_who_is_told_to_wait_too_long_is_answered_at_once_instead(patience: Retries) -> None:
    network = Network(TOLD_TOO_LONG)
    with pytest.raises(ApiRefused, match="503 overloaded"):
        network.carry(insist(patience, READ))
    assert network.carry(grab(patience, "d1", "p", "n")).status == 503
    assert network.carry(grab(patience, "d1", "p", "n", so_far=TOLD_TOO_LONG)).status == 503
    assert (len(network.lines), network.pauses) == (2, [])


def test_a_pending_grab_that_is_told_to_wait_too_long_stays_pending() -> None:
    network = Network(said(202, retry_after_s=31.0))
    assert network.carry(grab(PATIENT, "d1", "p", "n")).outcome == "pending"
    assert (len(network.lines), network.pauses) == (1, [])


@pytest.mark.parametrize("told_s", [0.0, 30.0])
def test_what_may_be_waited_for_is_waited_for(told_s: float) -> None:
    network = Network(said(429, retry_after_s=told_s), said(200))
    assert network.carry(insist(PATIENT, READ)).status == 200
    assert told_s <= network.pauses[0] <= max(told_s * 1.25, PATIENT.pause_s * 1.5)


def test_the_relentless_wait_less_than_a_day_but_go_on() -> None:
    network = Network(*[TOLD_TOO_LONG] * 20, said(200))
    assert network.carry(insist(RELENTLESS, READ)).status == 200
    assert len(network.pauses) == 20
    assert RELENTLESS.told_max_s <= min(network.pauses)
    assert max(network.pauses) <= RELENTLESS.told_max_s * 1.25


def test_the_relentless_ask_for_as_long_as_it_takes() -> None:
    network = Network(*[said(503)] * 500, NOBODY, LOST, said(200))
    assert network.carry(insist(RELENTLESS, READ)).status == 200
    assert max(network.pauses) <= RELENTLESS.pause_max_s * 1.5


def test_the_patient_wait_longer_than_a_rebuild_in_all() -> None:
    waited_s = [PATIENT.pause_before(attempt_no, said(503)).seconds for attempt_no in range(2, 9)]
    assert len(waited_s) == PATIENT.attempts_max_count - 1
    assert 3.5 <= sum(waited_s) <= 10.7


GRAB = "POST /v1/drops/d1/grabs"
LOOK_UP = "GET /v1/drops/d1/grabs/n%7C1"


@pytest.mark.parametrize(
    ("replies", "lines", "outcome"),
    [
        ([said(201)], [GRAB], "issued"),
        ([LOST, said(200)], [GRAB, GRAB], "repeated"),
        ([NOBODY, said(201)], [GRAB, GRAB], "issued"),
        ([said(202), said(202), said(200)], [GRAB, LOOK_UP, LOOK_UP], "repeated"),
        ([said(202), said(404, "unknown_request"), said(201)], [GRAB, LOOK_UP, GRAB], "issued"),
        ([said(202), LOST, said(200)], [GRAB, LOOK_UP, GRAB], "repeated"),
        ([said(500, "internal"), said(503, "rebuilding"), said(201)], [GRAB] * 3, "issued"),
        ([said(409, "sold_out")], [GRAB], "sold_out"),
        ([said(404, "unknown_drop")], [GRAB], "unknown_drop"),
        ([LOST], [GRAB] * 4, "lost"),
        ([said(202)], [GRAB, LOOK_UP, LOOK_UP, LOOK_UP], "pending"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_grab_keeps_its_number_until_it_has_an_answer(
    replies: list[Reply], lines: list[str], outcome: str
) -> None:
    network = Network(*replies)
    assert network.carry(grab(FOUR, "d1", "p", "n|1")).outcome == outcome
    assert network.lines == lines


def test_a_grab_goes_on_from_what_was_told_before_after_a_pause() -> None:
    network = Network(said(200))
    network.carry(grab(FOUR, "d1", "p", "n|1", so_far=said(202)))
    assert (network.lines, len(network.pauses)) == ([LOOK_UP], 1)


def test_what_is_said_of_a_lost_answer_names_no_number() -> None:
    with pytest.raises(AnswerLost, match=r"no answer to GET /v1/drops/d1/grabs/…$"):
        Network(LOST).carry(insist(FOUR, look_up_request("d1", "n|1")))


def test_names_cannot_lead_a_request_elsewhere() -> None:
    network = Network(said(200))
    network.carry(grab(FOUR, "../programs/x?y", "p", "n"))
    network.carry(insist(FOUR, read_request("vouchers", "a/b c")))
    assert network.lines == ["POST /v1/drops/..%2Fprograms%2Fx%3Fy/grabs", "GET /v1/vouchers/a%2Fb%20c"]
