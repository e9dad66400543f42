"""A partner's events as Server-Sent Events (WHATWG HTML, section 9.2), for as long as it listens.

Not `fastapi.sse`: its generator has begun to answer before a problem (410, 429) could be told,
decouples reading from sending by buffers of its own, and wants each event as text. Here one page
is read, sent event by event as fast as the client takes it, and only then the next one is read:
a slow reader costs a page of memory, and a stalled one is cut off.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any, Final, NamedTuple

import structlog
from starlette.background import BackgroundTask
from starlette.responses import Response

from couponsvc.api.event_waiting import EventWaits, Receive, Seat
from couponsvc.api.handlers import problem_of
from couponsvc.api.principal import Principal
from couponsvc.api.problems import ProblemAnswer
from couponsvc.values.event import Event

log = structlog.get_logger("events")

MEDIA_TYPE: Final = "text/event-stream"
PAGE_COUNT: Final = 4
"""Events read at a time: at most 700 kB held for a reader, rendered in a few milliseconds."""
COMMENT_EVERY_S: Final = 15.0
"""Silence is cut by load balancers, mostly after 60 s; the contract's own wait is 20 s."""
STALLED_S: Final = 60.0
"""How long one event may take to be taken: 3 kB a second for the largest. Then the reader is cut off
and comes back with its Last-Event-ID."""
RETRY_MS: Final = 2_000
"""How soon a client comes back after a stream has ended: by then a restarted process listens again."""

_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
_COMMENT: Final = b": nothing new\n"

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Page(NamedTuple):
    """The next events of a partner."""

    events: list[Event]
    next: int
    """The cursor to go on from; after an empty page: up to where there was nothing for certain."""


ReadPage = Callable[[int | None, int], Awaitable[Page]]
"""`(after, limit)` -> a page; raises ProblemAnswer where the partner cannot go on from there."""


class EventStream(Response):
    """The answer to `GET /v1/events/stream`.

    Args:
        waits: Where it takes its seat.
        principal: The partner; the stream ends when its key does.
        read_page: Reads the partner's events.
        after: The cursor to go on from; None: from the beginning.
        sent: Is told how many events were sent.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        waits: EventWaits,
        principal: Principal,
        *,
        read_page: ReadPage,
        after: int | None,
        sent: Callable[[int], None],
    ) -> None:
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers(_HEADERS)
        self._waits: Final = waits
        self._principal: Final = principal
        self._read_page: Final = read_page
        self._after = after
        self._sent: Final = sent

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send events until the client goes, the key ends, the process stops, or a page is refused.

        Raises:
            ProblemAnswer: too many read already, or the first page is refused; nothing was sent.
        """
        partner_no = self._principal.partner_no
        assert partner_no is not None, "the route lets partners only in"  # noqa: S101
        async with self._waits.seat(partner_no, self._principal.key_id, receive) as seat:
            events = await self._read()
            began = monotonic()
            try:
                await self._tell(events, seat, send)
            except TimeoutError:
                log.warning("a reader of events stalled and was cut off", partner_no=partner_no)
            finally:  # a long stream is not a slow answer
                state = scope.setdefault("state", {})
                state["waited_s"] = state.get("waited_s", 0.0) + monotonic() - began

    async def _tell(self, events: list[Event], seat: Seat, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send_some(send, b"retry: %d\n\n" % RETRY_MS)
        comment_at = monotonic() + COMMENT_EVERY_S
        while self._waits.go_on(seat):
            if events:
                await self._send_events(events, seat, send)
                comment_at = monotonic() + COMMENT_EVERY_S
            elif not await seat.wait(comment_at - monotonic()):
                await _send_some(send, keep_alive(self._after))
                comment_at = monotonic() + COMMENT_EVERY_S
            try:
                events = await self._read() if self._waits.go_on(seat) else []
            except ProblemAnswer as refusal:  # no status can say so any more; whoever comes back is told
                log.warning("a stream of events ends", code=refusal.code, after=self._after)
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self) -> list[Event]:
        """The next events; where there are none, the cursor moves on. While Postgres is away there are none.

        Raises:
            ProblemAnswer: the page is refused.
        """
        try:
            page = await self._read_page(self._after, PAGE_COUNT)
        except ProblemAnswer:
            raise
        except Exception as error:
            answer = problem_of(error)
            if answer is None or answer.code != "ledger_unavailable":
                raise
            return []
        if not page.events:
            self._after = page.next
        return page.events

    async def _send_events(self, events: list[Event], seat: Seat, send: Send) -> None:
        events.reverse()
        count = len(events)
        while events and self._waits.go_on(seat):
            event = events.pop()  # what was sent is not held any longer
            await _send_some(send, in_stream(event))
            self._after = event.event_no
        self._sent(count - len(events))


def in_stream(event: Event) -> bytes:
    """One event as it stands in the stream; its JSON has no line breaks (RFC 8259 escapes them)."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.event_no, event.kind.public.encode(), event.body)


def keep_alive(after: int | None) -> bytes:
    """A comment, and how far nothing was missed, where that is known.

    An `id` without data dispatches nothing, and is what a client sends as Last-Event-ID when it comes back.
    """
    return _COMMENT + (b"\n" if after is None else b"id: %d\n\n" % after)


async def _send_some(send: Send, body: bytes) -> None:
    """Send a part; waits while the client has not taken the part before.

    Raises:
        TimeoutError: it does not.
    """
    async with asyncio.timeout(STALLED_S):
        await send({"type": "http.response.body", "body": body, "more_body": True})
