"""Reading the feed on and on: when to ask again where there was nothing, and never giving up."""

import sys
from time import monotonic
from typing import Final

from couponsvc.client.answers import NO_ANSWER
from couponsvc.client.calls import event_page, whole_seconds
from couponsvc.client.events import EventPage
from couponsvc.client.retrying import Pause, Retries, Steps

EMPTY_PAUSE_S: Final = 0.2
"""Before asking again when an empty page came at once: the service is stopping, or was not asked to wait."""
EMPTY_PAUSE_MAX_S: Final = 2.0
"""Up to which that grows: as late as an event may be noticed then, and little work for the service."""

_EMPTY: Final = Retries(sys.maxsize, pause_s=EMPTY_PAUSE_S, pause_max_s=EMPTY_PAUSE_MAX_S)


def feed_page(retries: Retries, after: str, *, follow: bool, wait_s: float) -> Steps[tuple[str, EventPage]]:
    """Read the next page; with `follow` the next that has events, however long that takes.

    Returns:
        The page and the cursor it was asked with.

    Raises:
        ApiRefused, AnswerLost, Unreachable: as `event_page`; with `follow` only `ApiRefused`, and only
            what asking again would not change.
    """
    if not follow:
        return after, (yield from event_page(retries, after))
    endless, asked_s, empty_count = retries.without_end(), whole_seconds(wait_s), 0
    while True:
        began_s = monotonic()
        page = yield from event_page(endless, after, wait_s=wait_s)
        if page.events:
            return after, page
        after = page.next
        empty_count += 1
        yield pause_after_empty(empty_count, asked_s, monotonic() - began_s)


def pause_after_empty(empty_count: int, asked_s: int, took_s: float) -> Pause:
    """How long to wait after the first, second … empty page in a row.

    Args:
        empty_count: Pages that had nothing, this one included.
        asked_s: How long the service was asked to wait for events; 0: not at all.
        took_s: How long the page took. One that took as long as was asked needs no pause.
    """
    pause_s = _EMPTY.pause_before(empty_count + 1, NO_ANSWER).seconds
    return Pause(max(0.0, min(pause_s, asked_s - took_s)) if asked_s else pause_s)
