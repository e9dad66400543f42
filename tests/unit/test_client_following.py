"""How a client follows the feed: the decisions alone; the test is the network."""

import sys

import pytest

from couponsvc.client import ONCE, PATIENT, ApiRefused, Retries, Unreachable
from couponsvc.client.answers import Answer
from couponsvc.client.following import EMPTY_PAUSE_MAX_S, EMPTY_PAUSE_S, feed_page, pause_after_empty
from tests.unit.test_client_retrying import LOST, NOBODY, Network, said

EVENT = b'{"specversion":"1.0","id":"evt_5","source":"/x","type":"t","time":"t","data":{}}'


def page(after: str, event: bytes = b"") -> Answer:
    return Answer(200, b'{"events":[%b],"next":"%b"}' % (event, after.encode()))


@pytest.mark.parametrize(
    ("wait_s", "query"),
    [(0, ""), (0.001, "&wait=1"), (0.5, "&wait=1"), (1, "&wait=1"), (1.2, "&wait=2"), (20, "&wait=20")],
)
def test_what_is_asked_to_wait_is_rounded_up_to_whole_seconds(wait_s: float, query: str) -> None:
    network = Network(page("5", EVENT))
    network.carry(feed_page(PATIENT, "4", follow=True, wait_s=wait_s))
    assert network.lines == ["GET /v1/events?after=4&limit=500" + query]


@pytest.mark.parametrize("wait_s", [0, 0.5, 20])
def test_empty_pages_that_come_at_once_are_asked_again_after_pauses_that_grow(wait_s: float) -> None:
    network = Network(*[page(str(number)) for number in range(20)], page("20", EVENT))
    after, found = network.carry(feed_page(PATIENT, "", follow=True, wait_s=wait_s))
    assert (after, found.next, [event.id for event in found.events]) == ("19", "20", ["evt_5"])
    assert len(network.pauses) == 20
    assert network.pauses[0] >= EMPTY_PAUSE_S * 0.5
    # Within what was asked to wait; a second is left even of half of one.
    assert min(network.pauses[4:]) >= min(EMPTY_PAUSE_MAX_S * 0.5, 0.9)
    assert max(network.pauses) <= EMPTY_PAUSE_MAX_S * 1.5


def test_an_empty_page_that_took_as_long_as_asked_needs_no_pause() -> None:
    for took_s in (20.0, 25.0):
        assert pause_after_empty(1, 20, took_s).seconds == 0.0
    assert pause_after_empty(9, 20, 19.9).seconds <= 0.11


def test_a_follower_asks_through_any_trouble_for_as_long_as_it_takes() -> None:
    day = said(503, retry_after_s=86_400.0)
    network = Network(*[said(503)] * 300, *[NOBODY] * 300, *[LOST] * 300, day, page("5", EVENT))
    _, found = network.carry(feed_page(ONCE, "4", follow=True, wait_s=20))
    assert (found.next, len(network.lines)) == ("5", 902)
    assert max(network.pauses[:-1]) <= ONCE.pause_max_s * 1.5
    assert network.pauses[-1] <= ONCE.without_end().told_max_s * 1.25


@pytest.mark.parametrize("status", [401, 403, 404, 410, 422])
def test_a_follower_is_told_what_asking_again_would_not_change(status: int) -> None:
    network = Network(said(503), said(status, "some_rule"))
    with pytest.raises(ApiRefused, match=f"{status} some_rule"):
        network.carry(feed_page(PATIENT, "4", follow=True, wait_s=20))
    assert len(network.lines) == 2


def test_who_does_not_follow_keeps_the_patience_and_gets_an_empty_page() -> None:
    network = Network(NOBODY)
    with pytest.raises(Unreachable):
        network.carry(feed_page(Retries(4), "4", follow=False, wait_s=20))
    assert network.lines == ["GET /v1/events?after=4&limit=500"] * 4
    _, found = Network(page("4")).carry(feed_page(PATIENT, "4", follow=False, wait_s=20))
    assert found.events == ()


def test_without_end_are_the_same_pauses() -> None:
    endless = Retries(3, pause_s=0.5, pause_max_s=7.0, told_max_s=400.0).without_end()
    assert (endless.attempts_max_count, endless.pause_s, endless.pause_max_s) == (sys.maxsize, 0.5, 7.0)
    assert endless.told_max_s == 400.0
