"""Subscriptions: where a partner's events are sent, and what became of each."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response

from couponsvc.api import answer_models, models
from couponsvc.api.access import PartnerReader, ServicesOf
from couponsvc.api.answers import json_answer
from couponsvc.api.openapi import body_of, problems
from couponsvc.api.principal import Principal
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.services import Services
from couponsvc.outbox import redelivery, subscriptions
from couponsvc.outbox.redelivery import Attempt, Delivery, DeliveryState
from couponsvc.outbox.subscriptions import Subscription
from couponsvc.support import logs
from couponsvc.support.guarded_url import UrlRefused, check_url
from couponsvc.values.event import (
    EVENT_NO_MAX,
    event_id,
    parse_event_id,
    parse_subscription_id,
    subscription_id,
)
from couponsvc.values.moment import rfc3339, unix_ms

router = APIRouter(prefix="/v1/subscriptions", tags=["events"])
log = logs.get("subscriptions")

DELIVERIES_PAGE_MAX_COUNT: Final = 200
"""With their attempts up to 1 MB."""
_PROBLEM_OF: Final = {
    redelivery.SubscriptionUnknown: "unknown_subscription",
    redelivery.SubscriptionDisabled: "conflict",
    redelivery.EventUnknown: "unknown_event",
    redelivery.TooManyEvents: "invalid_request",
}
_SECRET_HEADERS: Final = {"cache-control": "no-store"}

SubscriptionId = Annotated[str, Path(min_length=1, examples=["sub_7"])]


@router.post(
    "",
    operation_id="create_subscription",
    summary="Have events sent to a URL",
    status_code=201,
    responses={
        201: {"model": answer_models.NewSubscriptionAnswer, "description": "Made; the secret is shown once"},
        **problems("forbidden", "unknown_drop", "conflict", "body_too_large", "invalid_request"),
    },
    openapi_extra=body_of(models.SubscriptionBody),
)
async def create_subscription(request: Request, principal: PartnerReader, services: ServicesOf) -> Response:
    """Events of these types from now on are posted to the URL, signed as Standard Webhooks has it.

    The name in the URL is looked up now and at each delivery; an address that is not of the public
    internet is refused. The same subscription a second time is a `conflict` that names the first.
    """
    body = models.read_body(await request.body(), models.SubscriptionBody)
    partner_no = _partner_no(principal)
    try:
        await check_url(body.url, services.webhook_policy)
        made, secret = await subscriptions.create(
            services.pool, services.master_key, partner_no, body.url, body.types, body.drop_ids
        )
    except UrlRefused as refused:
        raise ProblemAnswer("invalid_request", f"url: {refused}") from None
    except subscriptions.UnknownDrop as unknown:
        raise ProblemAnswer("unknown_drop", str(unknown)) from None
    except subscriptions.AlreadySubscribed as there:
        name = subscription_id(there.subscription_no)
        detail = f"{name} says the same. If its secret was lost, rotate it."
        raise ProblemAnswer("conflict", detail) from None
    except subscriptions.TooMany as full:
        raise ProblemAnswer("conflict", str(full)) from None
    name = subscription_id(made.subscription_no)
    log.info("subscription made", subscription_id=name, partner_id=principal.partner_id)
    headers = {"location": f"/v1/subscriptions/{name}", **_SECRET_HEADERS}
    return json_answer({"subscription_id": name, "secret": secret}, 201, headers)


@router.get(
    "",
    operation_id="list_subscriptions",
    summary="List the partner's subscriptions",
    responses={200: {"model": answer_models.SubscriptionList}, **problems("forbidden")},
)
async def list_subscriptions(principal: PartnerReader, services: ServicesOf) -> Response:
    """In the order in which they were made, at most 16. Secrets are never shown again."""
    found = await subscriptions.list_live(services.pool, _partner_no(principal))
    return json_answer({"subscriptions": [_subscription(one) for one in found]})


@router.get(
    "/{subscription_id}",
    operation_id="get_subscription",
    summary="Read a subscription",
    responses={
        200: {"model": answer_models.SubscriptionAnswer},
        **problems("forbidden", "unknown_subscription"),
    },
)
async def get_subscription(
    subscription_id: SubscriptionId, principal: PartnerReader, services: ServicesOf
) -> Response:
    """What it says, and how its receiver does."""
    return json_answer(_subscription(await _find(services, principal, subscription_id)))


@router.delete(
    "/{subscription_id}",
    operation_id="delete_subscription",
    summary="End a subscription",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "Ended"}, **problems("forbidden", "unknown_subscription")},
)
async def delete_subscription(
    subscription_id: SubscriptionId, principal: PartnerReader, services: ServicesOf
) -> Response:
    """What is queued for it is not sent any more; a delivery that is on its way may still arrive."""
    number = _number(subscription_id)
    if not await subscriptions.delete(services.pool, _partner_no(principal), number):
        raise ProblemAnswer("unknown_subscription")
    log.info("subscription ended", subscription_id=subscription_id, partner_id=principal.partner_id)
    return Response(status_code=204)


@router.post(
    "/{subscription_id}/rotate-secret",
    operation_id="rotate_secret",
    summary="Give a subscription a new secret",
    responses={
        200: {"model": answer_models.RotatedSecretAnswer, "description": "The secret, shown once"},
        **problems("forbidden", "unknown_subscription"),
    },
)
async def rotate_secret(
    subscription_id: SubscriptionId, principal: PartnerReader, services: ServicesOf
) -> Response:
    """For a day deliveries carry two signatures, the new secret's and the old one's.

    Rotated once more within that day, the oldest of the three ends at once; but within five minutes
    the newest is replaced, so that a rotation whose answer was lost can be repeated.
    """
    secret = await subscriptions.rotate(
        services.pool, services.master_key, _partner_no(principal), _number(subscription_id)
    )
    if secret is None:
        raise ProblemAnswer("unknown_subscription")
    rotated = await _find(services, principal, subscription_id)
    log.info("secret rotated", subscription_id=subscription_id, partner_id=principal.partner_id)
    content = {
        "subscription_id": subscription_id,
        "secret": secret,
        "previous_secret_until": _moment(rotated.previous_until),
    }
    return json_answer(content, headers=_SECRET_HEADERS)


@router.post(
    "/{subscription_id}/test",
    operation_id="test_subscription",
    summary="Send a test event",
    status_code=202,
    responses={
        202: {"model": answer_models.TestAnswer, "description": "On its way"},
        **problems("forbidden", "unknown_subscription", "conflict"),
    },
)
async def test_subscription(
    subscription_id: SubscriptionId, principal: PartnerReader, services: ServicesOf
) -> Response:
    """A `couponsvc.webhook.test.v1` event, whatever types it asks for; see its deliveries for the outcome."""
    found = await _find(services, principal, subscription_id)
    if not await subscriptions.request_test(services.pool, found.partner_no, found.subscription_no):
        raise ProblemAnswer(
            "conflict", "The receiver answered 410; delete the subscription and make a new one."
        )
    return json_answer({"subscription_id": subscription_id, "status": "queued"}, 202)


@router.post(
    "/{subscription_id}/redeliver",
    operation_id="redeliver_events",
    summary="Send events again",
    status_code=202,
    responses={
        202: {"model": answer_models.RedeliverAnswer, "description": "On their way"},
        **problems(
            "forbidden",
            "unknown_subscription",
            "unknown_event",
            "conflict",
            "body_too_large",
            "invalid_request",
        ),
    },
    openapi_extra=body_of(models.RedeliverBody),
)
async def redeliver_events(
    subscription_id: SubscriptionId, request: Request, principal: PartnerReader, services: ServicesOf
) -> Response:
    """Due at once, with the same ids and the same bytes, also where the receiver was failing.

    An event that is being delivered at this moment is left to that, and not counted.
    """
    body = models.read_body(await request.body(), models.RedeliverBody)
    by_time = "since" in body.model_fields_set
    try:
        count = await redelivery.redeliver(
            services.pool,
            _partner_no(principal),
            _number(subscription_id),
            event_ids=[_event_no(name) for name in body.event_ids] or None,
            since=body.since if by_time else None,
            until=body.until if by_time else None,
            parked=body.parked,
        )
    except redelivery.RedeliveryRefused as refused:
        raise ProblemAnswer(_PROBLEM_OF[type(refused)], str(refused)) from None
    return json_answer({"queued": count}, 202)


@router.get(
    "/{subscription_id}/deliveries",
    operation_id="list_deliveries",
    summary="See what became of events",
    responses={
        200: {"model": answer_models.DeliveryList},
        **problems("forbidden", "unknown_subscription", "invalid_request"),
    },
)
async def list_deliveries(  # noqa: PLR0917 - FastAPI names them
    subscription_id: SubscriptionId,
    principal: PartnerReader,
    services: ServicesOf,
    state: Annotated[DeliveryState | None, Query(description="Only these")] = None,
    before: Annotated[
        str | None, Query(pattern=models.EVENT_ID_PATTERN, description="`next` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=DELIVERIES_PAGE_MAX_COUNT), models.DIGITS] = 100,
) -> Response:
    """The newest event first, each with its newest attempts. What receivers answer is not kept."""
    found = await _find(services, principal, subscription_id)
    page = await redelivery.deliveries(
        services.pool,
        found.subscription_no,
        state=state,
        before=EVENT_NO_MAX if before is None else _event_no(before),
        limit=limit,
    )
    last = event_id(page[-1].event_no) if len(page) == limit else None
    return json_answer({"deliveries": [_delivery(one) for one in page], "next": last})


async def _find(services: Services, principal: Principal, name: str) -> Subscription:
    found = await subscriptions.find(services.pool, _partner_no(principal), _number(name))
    if found is None:
        raise ProblemAnswer("unknown_subscription")
    return found


def _partner_no(principal: Principal) -> int:
    assert principal.partner_no is not None, "the routes let partners only in"  # noqa: S101
    return principal.partner_no


def _number(name: str) -> int:
    number = parse_subscription_id(name)
    if number is None:
        raise ProblemAnswer("unknown_subscription")
    return number


def _event_no(name: str) -> int:
    number = parse_event_id(name)
    if number is None:
        raise ProblemAnswer("unknown_event", f"There is no event {name}.")
    return number


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(unix_ms(moment))


def _subscription(one: Subscription) -> dict[str, Any]:
    now = datetime.now(UTC)
    signs_twice = one.previous_until is not None and one.previous_until > now
    return {
        "subscription_id": subscription_id(one.subscription_no),
        "url": one.url,
        "types": one.types,
        "drop_ids": one.drop_ids,
        "created_at": _moment(one.created_at),
        "disabled_at": _moment(one.disabled_at),
        "failure_count": one.failure_count,
        "held_until": _moment(one.held_until),
        "previous_secret_until": _moment(one.previous_until) if signs_twice else None,
    }


def _delivery(one: Delivery) -> dict[str, Any]:
    return {
        "event_id": event_id(one.event_no),
        "type": one.type,
        "occurred_at": _moment(one.occurred_at),
        "state": one.state,
        "next_attempt_at": _moment(one.due_at),
        "parked_because": one.parked_because,
        "attempts": [_attempt(attempt) for attempt in one.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt_no": attempt.attempt_no,
        "attempted_at": _moment(attempt.attempted_at),
        "took_ms": attempt.took_ms,
        "status": attempt.status,
        "outcome": attempt.outcome,
        "error": attempt.error,
    }
