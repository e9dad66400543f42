"""The ladder of attempts and the holds of a failing endpoint."""

from datetime import UTC, datetime, timedelta

import pytest

from couponsvc import limits
from couponsvc.outbox import retries

START = datetime(2026, 10, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(("attempt_no", "delay_s"), list(enumerate(limits.WEBHOOK_RETRY_DELAYS_S, start=1)))
def test_each_delay_is_the_ladders_lengthened_by_at_most_the_jitter(attempt_no: int, delay_s: int) -> None:
    for jitter, share in ((0.0, 1.0), (0.5, 1.05), (0.999, 1.1)):
        due_at, parked_because = retries.after_failure(attempt_no, START, START, jitter)
        assert parked_because is None
        assert due_at is not None
        assert (due_at - START).total_seconds() == pytest.approx(delay_s * share, rel=2e-4)


def test_ten_attempts_take_75_6_hours() -> None:
    moment, attempts = START, 1
    while (following := retries.after_failure(attempts, START, moment, 0.0)).due_at is not None:
        moment, attempts = following.due_at, attempts + 1
    assert attempts == retries.DELIVERY_ATTEMPTS_MAX_COUNT == 10
    assert moment - START == timedelta(hours=75, minutes=35, seconds=5)
    assert following.parked_because == "gave up after 10 attempts in 75.6 hours"


def test_a_delivery_that_is_older_than_the_ladder_is_not_tried_again() -> None:
    young, old = START + retries.LADDER, START + retries.LADDER + timedelta(seconds=1)
    assert retries.after_failure(2, START, young, 0.5).due_at is not None
    assert retries.after_failure(2, START, old, 0.5) == (None, retries.TOO_OLD)


def test_the_longest_ladder_with_jitter_ends_by_its_attempts_and_not_by_its_age() -> None:
    moment = START
    for attempt_no in range(1, retries.DELIVERY_ATTEMPTS_MAX_COUNT):
        following = retries.after_failure(attempt_no, START, moment, 0.9999)
        assert following.due_at is not None
        moment = following.due_at
    assert moment - START < retries.LADDER


def test_holds_double_from_a_second_to_five_minutes() -> None:
    assert retries.HOLDS_S == (1, 2, 4, 8, 16, 32, 64, 128, 256, 300)


def test_what_failed_twice_waits_no_longer_than_is_looked_at_when_it_is_made_up_for() -> None:
    for attempt_no in range(1, retries.YOUNG_ATTEMPTS_MAX_COUNT + 1):
        due_at, _ = retries.after_failure(attempt_no, START, START, 0.9999)
        assert due_at is not None
        assert due_at - START <= retries.YOUNG_DUE_WITHIN
