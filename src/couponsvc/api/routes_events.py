"""The feed: a partner's events in order, page by page or as they come; and their schemas."""

from importlib.resources import files
from time import monotonic
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator

from couponsvc import limits
from couponsvc.api import answer_models, models
from couponsvc.api.access import PartnerReader, ServicesOf
from couponsvc.api.answers import json_answer
from couponsvc.api.auth import Principal
from couponsvc.api.event_stream import MEDIA_TYPE, EventStream
from couponsvc.api.openapi import problems
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.services import Services
from couponsvc.support import metrics
from couponsvc.values.event import EVENT_NO_MAX, TYPE_OF_PUBLIC, Event, EventType

router = APIRouter(tags=["events"])

CURSOR_PATTERN: Final = "^(0|[1-9][0-9]{0,18})$"
SCHEMA_MEDIA_TYPE: Final = "application/schema+json"
SCHEMA_SUFFIX: Final = ".json"

_SCHEMAS: Final = files("couponsvc.outbox").joinpath("schemas")
_READ: Final = metrics.counter(
    "couponsvc_feed_events", "Events that partners read of the feed, by way.", ["way"]
)
_NO_STORE: Final = {"cache-control": "no-store"}


def _not_too_large(cursor: str | None) -> str | None:
    if cursor is not None and int(cursor) > EVENT_NO_MAX:
        raise ValueError("no cursor of ours is so large")
    return cursor


Cursor = Annotated[
    str | None,
    Query(
        pattern=CURSOR_PATTERN,
        description="`next` of the page before, as it was given; without it, from the beginning.",
        examples=["1042"],
    ),
    AfterValidator(_not_too_large),
]
LastEventId = Annotated[
    str | None,
    Header(pattern=CURSOR_PATTERN, description="The last `id` that was received; counts before `after`."),
    AfterValidator(_not_too_large),
]


@router.get(
    "/v1/events",
    operation_id="read_events",
    summary="Read the partner's events, in order",
    responses={
        200: {"model": answer_models.EventPage, "description": "The next events, or none yet"},
        **problems("forbidden", "events_gone", "invalid_request", "rate_limited", "overloaded"),
    },
)
async def read_events(  # noqa: PLR0917 - FastAPI names them
    request: Request,
    principal: PartnerReader,
    services: ServicesOf,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=limits.FEED_PAGE_MAX_COUNT), models.DIGITS] = (
        limits.FEED_PAGE_MAX_COUNT
    ),
    wait: Annotated[
        int,
        Query(ge=0, le=limits.FEED_WAIT_MAX_S, description="Seconds to wait while there are none."),
        models.DIGITS,
    ] = 0,
) -> Response:
    """Every event once, each drop's in the order of commits: keep `next` with what you made of the page.

    `next` is always there; ask again with it as `after`. Events are the same as those of webhooks, byte
    for byte. A page may be shorter than `limit` although there are more.
    """
    feed = _Feed(services, principal)
    start = int(after or 0)
    events = await feed.page(start, limit)
    if after is not None:
        await feed.refuse_gone(start)
    if wait and not events:
        events = await feed.wait(request, start, limit, wait)
    _READ.labels("page").inc(len(events))
    last = events[-1].event_no if events else await feed.nothing_until(start)
    return json_answer(
        {"events": [msgspec.Raw(event.body) for event in events], "next": str(last)}, headers=_NO_STORE
    )


@router.get(
    "/v1/events/stream",
    operation_id="stream_events",
    summary="Listen to the partner's events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-Sent Events: `id` is the cursor, `event` the type, `data` the event.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        **problems("forbidden", "events_gone", "invalid_request", "rate_limited", "overloaded"),
    },
)
async def stream_events(
    principal: PartnerReader,
    services: ServicesOf,
    after: Cursor = None,
    last_event_id: LastEventId = None,
) -> Response:
    """The feed as it grows, first from `Last-Event-ID` or `after` to the present.

    It ends when we restart: come back with the last `id`, and nothing is lost or told twice.
    """
    feed = _Feed(services, principal)
    cursor = last_event_id or after
    if cursor is not None:
        await feed.refuse_gone(int(cursor))
    return EventStream(
        services.event_waits,
        principal,
        read_page=feed.page,
        after=int(cursor or 0),
        sent=_READ.labels("stream").inc,
    )


@router.get(
    "/schemas/{name}",
    operation_id="get_schema",
    summary="Read the schema of a type of events",
    responses={
        200: {
            "description": "JSON Schema (2020-12) of the whole event",
            "content": {SCHEMA_MEDIA_TYPE: {"schema": {"type": "object"}}},
        },
        **problems("not_found"),
    },
)
async def get_schema(
    name: Annotated[str, Path(min_length=1, examples=["couponsvc.voucher.issued.v1.json"])],
) -> Response:
    """`name` is a `type` with `.json`; an event names the same schema in `dataschema`, by its `$id`."""
    schema = _SCHEMAS.joinpath(name)
    if name.removesuffix(SCHEMA_SUFFIX) not in TYPE_OF_PUBLIC or not schema.is_file():
        raise ProblemAnswer("not_found", f"Schemas are named {', '.join(map(schema_name, EventType))}.")
    return Response(schema.read_bytes(), media_type=SCHEMA_MEDIA_TYPE)


def schema_name(kind: EventType) -> str:
    """The last part of the path of a schema."""
    return kind.public + SCHEMA_SUFFIX


class _Feed:
    """What one partner may read."""

    def __init__(self, services: Services, principal: Principal) -> None:
        assert principal.partner_no is not None, "the route lets partners only in"  # noqa: S101
        self._services: Final = services
        self._key_id: Final = principal.key_id
        self._partner_no: Final = principal.partner_no

    async def page(self, after: int, limit: int) -> list[Event]:
        """The next events, at most `limit`."""
        async with self._services.event_waits.reading:
            return await self._services.events.page(self._partner_no, after, limit)

    async def refuse_gone(self, after: int) -> None:
        """Refuse a cursor behind which events may be missing; asked after reading, so that none is.

        Raises:
            ProblemAnswer: `events_gone`.
        """
        if after + 1 < await self._services.events.oldest_kept():
            raise ProblemAnswer("events_gone")

    async def nothing_until(self, after: int) -> int:
        """The cursor after an empty page: as far on as there is nothing of the partner for certain.

        So that a reader with few events, who comes back regularly, keeps clear of `events_gone`.
        """
        newest = self._services.event_waits.newest_event_no  # committed, so that `latest` sees them all
        if newest > after and await self._services.events.latest(self._partner_no) <= after:
            return newest
        return after

    async def wait(self, request: Request, after: int, limit: int, wait_s: int) -> list[Event]:
        """The next events, or none once `wait_s` is over, the client has gone or the process stops.

        Raises:
            ProblemAnswer: too many wait already, or the key was revoked meanwhile.
        """
        waits = self._services.event_waits
        began = monotonic()
        until = began + wait_s
        try:
            async with waits.seat(self._partner_no, self._key_id, request.receive) as seat:
                while True:
                    events = await self.page(after, limit)
                    left_s = until - monotonic()
                    if events or left_s <= 0 or seat.left or waits.ended:
                        break
                    if not await seat.wait(left_s):
                        break
        finally:  # waiting for what has not happened yet is not a slow answer
            request.state.waited_s = monotonic() - began
        if not self._services.authenticator.is_live(self._key_id):
            raise ProblemAnswer("unauthenticated", "The key was revoked while the request waited.")
        return events
