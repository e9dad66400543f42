"""When a delivery is tried again, when it is given up, and how a failing endpoint is spared."""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from couponsvc import limits

DELIVERY_ATTEMPTS_MAX_COUNT: Final = len(limits.WEBHOOK_RETRY_DELAYS_S) + 1
LADDER: Final = timedelta(seconds=sum(limits.WEBHOOK_RETRY_DELAYS_S) * (1 + limits.WEBHOOK_RETRY_JITTER))
"""The longest that all attempts of one delivery may take: 75.6 hours and the jitter."""

FAILING_FROM_COUNT: Final = 5
"""Failures in a row after which an endpoint counts as failing: four may be one bad event or a restart. Of
attempts that were under way at the same time one counts: eight that meet one restart are one failure."""
HOLD_FIRST_S: Final = 1
"""A restart of a receiver takes a second or less, and a probe a second costs nobody anything."""
HOLD_MAX_S: Final = 300
"""How soon at the latest an endpoint that is back is noticed, as long as something is due."""
HOLDS_S: Final = tuple(
    min(HOLD_FIRST_S * 2**step, HOLD_MAX_S) for step in range((HOLD_MAX_S // HOLD_FIRST_S).bit_length() + 1)
)
"""Pauses before the first probe, the second …; from then on the last one."""

TROUBLED_FROM_COUNT: Final = 2
"""Failures in a row after which a success says that it was the endpoint that had failed. One may be an event
that it alone refuses, among others that it accepts: that one goes down its ladder."""
YOUNG_ATTEMPTS_MAX_COUNT: Final = 2
"""Failures of a delivery for which an endpoint below FAILING_FROM_COUNT may be to blame: with its next
success they are made up for at once. Two of ten attempts are what that costs an event that is refused."""
YOUNG_DUE_WITHIN: Final = timedelta(
    seconds=max(limits.WEBHOOK_RETRY_DELAYS_S[:YOUNG_ATTEMPTS_MAX_COUNT]) * (1 + limits.WEBHOOK_RETRY_JITTER)
)
"""The longest that such a delivery waits."""

GONE: Final = "the receiver answered 410"
TOO_OLD: Final = "the receiver did not accept anything for as long as attempts are made"
NOT_SENT: Final = "the event could not be read or signed; the relay's log says why"


class Next(NamedTuple):
    """What follows a failed attempt: one of the two."""

    due_at: datetime | None
    parked_because: str | None


def after_failure(attempt_no: int, queued_at: datetime, failed_at: datetime, jitter: float) -> Next:
    """When a delivery whose attempt failed is due again, or why it is given up.

    Args:
        attempt_no: which attempt failed, from 1.
        queued_at: when the delivery's attempts began.
        failed_at: now.
        jitter: in [0, 1); which share of the longest jitter to add.
    """
    if attempt_no >= DELIVERY_ATTEMPTS_MAX_COUNT:
        return Next(None, f"gave up after {attempt_no} attempts in {_hours(failed_at - queued_at)}")
    if failed_at - queued_at > LADDER:
        return Next(None, TOO_OLD)
    delay_s = limits.WEBHOOK_RETRY_DELAYS_S[attempt_no - 1] * (1 + limits.WEBHOOK_RETRY_JITTER * jitter)
    return Next(failed_at + timedelta(seconds=delay_s), None)


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.1f} hours"
