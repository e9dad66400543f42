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
from couponsvc.api.event_stream import MEDIA_TYPE, EventStream, Page
from couponsvc.api.openapi import problems
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.services import Services
from couponsvc.outbox.reading import Untellable, in_one_partition
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
_BEYOND: Final = (
    "This cursor lies beyond the newest event, {newest}: the ledger was restored from an older copy, or the "
    "cursor belongs to another deployment. Compare what you have with the ledger, and start again without "
    "after."
)
_DAMAGED: Final = (
    "{error}, so nothing from it on can be told. An operator has to mend that first; then ask again with the "
    "same cursor."
)


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
    start = None if after is None else int(after)
    page = await feed.page(start, limit)
    if wait and not page.events:
        page = await feed.wait(request, start, limit, wait)
    _READ.labels("page").inc(len(page.events))
    return json_answer(
        {"events": [msgspec.Raw(event.body) for event in page.events], "next": str(page.next)},
        headers=_NO_STORE,
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

    It ends when we restart: come back with the last `id`, and nothing is lost or told twice. An `id`
    without an event comes with each comment: up to there nothing concerned the partner.
    """
    cursor = last_event_id or after
    return EventStream(
        services.event_waits,
        principal,
        read_page=_Feed(services, principal).page,
        after=None if cursor is None else int(cursor),
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

    async def page(self, after: int | None, limit: int) -> Page:
        """The next events, at most `limit`, and how far the partner has missed nothing then.

        Args:
            after: The cursor; None: from the beginning, which is the oldest event that is kept.
            limit: Of events.

        Raises:
            ProblemAnswer: `events_gone`; or `ledger_unavailable`, the next event is damaged.
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
        """
        async with self._services.event_waits.reading:
            events = await self._events(after, limit)
            return Page(events, events[-1].event_no if events else await self._nothing_until(after))

    async def _events(self, after: int | None, limit: int) -> list[Event]:
        """The next events; none of them, where one before the first was dropped.

        Partitions are dropped whole: most pages prove by themselves that nothing is missing before them.
        """
        try:
            events = await self._services.events.page(self._partner_no, after or 0, limit)
        except Untellable as error:
            raise ProblemAnswer("ledger_unavailable", _DAMAGED.format(error=error)) from error
        if events and after is not None and not in_one_partition(after + 1, events[0].event_no):
            await self._start(after)
        return events

    async def _start(self, after: int | None) -> int:
        """The cursor, or the beginning's; refused where events behind it may be missing.

        Asked after events were read, never before: what is kept still was kept then.
        """
        kept = await self._services.events.kept()
        if after is None:
            return kept.oldest - 1
        if after + 1 < kept.oldest:
            raise ProblemAnswer("events_gone")
        if after > kept.newest:  # of the database itself; a valid cursor was committed before it was told
            raise ProblemAnswer("events_gone", _BEYOND.format(newest=kept.newest))
        return after

    async def _nothing_until(self, after: int | None) -> int:
        """The cursor after an empty page: as far on as there is nothing of the partner for certain.

        So that a reader with few events, who comes back regularly, keeps clear of `events_gone`.
        """
        standing = None
        if after != self._services.event_waits.newest_event_no:  # else it is probably up to date
            standing = await self._services.events.standing(self._partner_no)
        start = await self._start(after)
        if standing is not None and standing.latest <= start < standing.newest:
            return standing.newest
        return start

    async def wait(self, request: Request, after: int | None, limit: int, wait_s: int) -> Page:
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
                    page = await self.page(after, limit)
                    left_s = until - monotonic()
                    if page.events or left_s <= 0 or seat.left or waits.ended:
                        break
                    if not await seat.wait(left_s):
                        break
        finally:  # waiting for what has not happened yet is not a slow answer
            request.state.waited_s = monotonic() - began
        if not self._services.authenticator.is_live(self._key_id):
            raise ProblemAnswer("unauthenticated", "The key was revoked while the request waited.")
        return page
