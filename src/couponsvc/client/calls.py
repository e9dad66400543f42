"""Every call that a partner makes, typed, as steps without input or output (see `retrying`)."""

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from couponsvc.client.answers import Answer, ApiRefused, Refusal, Voucher
from couponsvc.client.events import BEGINNING, EventPage
from couponsvc.client.requests import (
    Request,
    act_request,
    delete_request,
    look_up_request,
    read_request,
)
from couponsvc.client.retrying import Retries, Steps, insist
from couponsvc.client.subscriptions import DeliveryPage, NewSubscription, RotatedSecret, Subscription

T = TypeVar("T")

FEED_PAGE_MAX_COUNT = 500
"""Contract: events in one page of the feed."""
FEED_WAIT_MAX_S = 20.0
"""Contract: how long a question for new events may wait."""
DELIVERIES_PAGE_COUNT = 100


class Drop(msgspec.Struct, frozen=True):
    """A drop as it stands."""

    drop_id: str
    program_id: str
    template_id: str
    quantity: int
    per_person_limit: int
    opens_at: str
    closes_at: str
    face_value_fen: int
    min_spend_fen: int
    valid_for_hours: int
    state: str
    available: int
    pending: int
    issued: int
    sold_out_at: str | None = None


class _Queued(msgspec.Struct):
    queued: int


class _Subscriptions(msgspec.Struct):
    subscriptions: tuple[Subscription, ...]


def look_up(retries: Retries, drop_id: str, out_request_no: str) -> Steps[Answer]:
    """Ask what became of a number, without grabbing.

    Returns:
        `repeated` with the voucher, or `pending`.

    Raises:
        ApiRefused: `unknown_request`: nothing durable is known; send the grab again, same number.
    """
    return (yield from insist(retries, look_up_request(drop_id, out_request_no)))


def voucher(retries: Retries, voucher_id: str) -> Steps[Voucher]:
    """Read a voucher's present state.

    Raises:
        ApiRefused: `unknown_voucher`: there is none, or it is another partner's.
    """
    return (yield from _read(retries, read_request("vouchers", voucher_id), Voucher))


def drop(retries: Retries, drop_id: str) -> Steps[Drop]:
    """Read a drop with its state and figures.

    Raises:
        ApiRefused: `unknown_drop`: there is none that this partner sees.
    """
    return (yield from _read(retries, read_request("drops", drop_id), Drop))


def event_page(
    retries: Retries, after: str = BEGINNING, *, limit: int = FEED_PAGE_MAX_COUNT, wait_s: float = 0.0
) -> Steps[EventPage]:
    """Read one page of the feed.

    Args:
        retries: How patient; a client brings its own.
        after: The `next` of the page before; nothing starts at the beginning.
        limit: At most so many events.
        wait_s: How long the service may hold back an empty page; rounded up to whole seconds, at most
            `FEED_WAIT_MAX_S`.

    Raises:
        ApiRefused: `events_gone`: what follows the cursor is no longer kept.
    """
    asked_s = whole_seconds(wait_s)
    query = {"after": after, "limit": limit, "wait": asked_s or None}
    return (yield from _read(retries, read_request("events", query=query, wait_s=asked_s), EventPage))


def whole_seconds(wait_s: float) -> int:
    """`wait` as the contract has it. Rounded up: half a second as none would ask without a pause."""
    return math.ceil(wait_s)


def subscribe(
    retries: Retries, url: str, types: Sequence[str], drop_ids: Sequence[str] | None = None
) -> Steps[NewSubscription]:
    """Have events sent to a URL.

    Args:
        retries: How patient; a client brings its own.
        url: `https://…`; must answer a POST with 2xx.
        types: Of `EVENT_TYPES`.
        drop_ids: None: every drop, present and future.

    Raises:
        AnswerLost: it may have been made; ask again, and see `conflict`.
        ApiRefused: `conflict`: the same subscription is there, or there are too many; `invalid_request`:
            `detail` says what. After an `AnswerLost`, or where a 503 inside of this very call was a
            commit whose answer was lost behind the API, the one that is there is yours and its secret
            was never shown: find it with `subscriptions`, then `rotate_secret`; or `unsubscribe` and
            subscribe again.
    """
    body = {"url": url, "types": list(types), "drop_ids": None if drop_ids is None else list(drop_ids)}
    request = act_request("subscriptions", body=body, repeatable=False)
    return (yield from _read(retries, request, NewSubscription))


def subscriptions(retries: Retries) -> Steps[tuple[Subscription, ...]]:
    """List the subscriptions; secrets are never shown again."""
    found = yield from _read(retries, read_request("subscriptions"), _Subscriptions)
    return found.subscriptions


def subscription(retries: Retries, subscription_id: str) -> Steps[Subscription]:
    """Read one subscription.

    Raises:
        ApiRefused: `unknown_subscription`.
    """
    return (yield from _read(retries, read_request("subscriptions", subscription_id), Subscription))


def unsubscribe(retries: Retries, subscription_id: str) -> Steps[bool]:
    """End a subscription and what waits to be delivered to it; False where there was none (any more)."""
    try:
        yield from insist(retries, delete_request("subscriptions", subscription_id))
    except ApiRefused as refused:
        if refused.refusal.code == "unknown_subscription":
            return False
        raise
    return True


def rotate_secret(retries: Retries, subscription_id: str) -> Steps[RotatedSecret]:
    """Get a new secret; for a day the old one signs beside it.

    May be repeated: within five minutes the old one stays, and only the newest is made anew.
    """
    request = act_request("subscriptions", subscription_id, "rotate-secret", repeatable=True)
    return (yield from _read(retries, request, RotatedSecret))


def test(retries: Retries, subscription_id: str) -> Steps[None]:
    """Have a `WEBHOOK_TEST` event sent to a subscription."""
    yield from insist(retries, act_request("subscriptions", subscription_id, "test", repeatable=True))


def redeliver(
    retries: Retries,
    subscription_id: str,
    *,
    event_ids: Sequence[str] = (),
    since: str = "",
    until: str = "",
    parked: bool = False,
) -> Steps[int]:
    """Have events sent again: those named, those of a time, or all that were given up.

    Args:
        retries: How patient; a client brings its own.
        subscription_id: To whom.
        event_ids: `evt_…`.
        since: RFC 3339, with `until`: events that happened from then …
        until: … to before then.
        parked: What the relay has given up.

    Returns:
        How many were queued.

    Raises:
        ApiRefused: `unknown_event`, or `invalid_request` where it is not exactly one of the three.
    """
    body: dict[str, object] = {}
    if event_ids:
        body["event_ids"] = list(event_ids)
    if since or until:
        body |= {"from": since, "to": until}
    if parked:
        body["parked"] = True
    request = act_request("subscriptions", subscription_id, "redeliver", body=body, repeatable=True)
    return (yield from _read(retries, request, _Queued)).queued


def deliveries(
    retries: Retries,
    subscription_id: str,
    *,
    state: str | None = None,
    before: str | None = None,
    limit: int = DELIVERIES_PAGE_COUNT,
) -> Steps[DeliveryPage]:
    """See what became of events, the newest first.

    Args:
        retries: How patient; a client brings its own.
        subscription_id: At whose receiver.
        state: Only `waiting`, `delivering`, `parked` or `delivered` ones.
        before: The `next` of the page before.
        limit: At most so many.
    """
    query = {"state": state, "before": before, "limit": limit}
    request = read_request("subscriptions", subscription_id, "deliveries", query=query)
    return (yield from _read(retries, request, DeliveryPage))


def _read(retries: Retries, request: Request, kind: type[T]) -> Steps[T]:
    answer = yield from insist(retries, request)
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiRefused(
            answer.status, Refusal(title=f"the answer is not what the API sends: {error}")
        ) from error
