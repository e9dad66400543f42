"""uvicorn's HTTP protocol for connections from strangers: everything on them has a bound.

uvicorn waits for ever for the rest of a request, keeps heads and pipelined requests of any size,
answers garbage before the requests that came ahead of it, takes trailers for header fields, and does
not tell a running request that its client is gone once another one is queued behind it. Here:

- a head has 10 s and 16 KiB, a body 30 s, a message 8 MiB on the wire, a queue 64 requests;
- what two readers could understand differently ends the connection (RFC 9112 §3.2, §6.3);
- the last answer on a connection comes after those of the requests before it, never in their place.

One timer per connection and purpose, never one per request: it looks what is due when it fires.
"""

import asyncio
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from couponsvc import limits
from couponsvc.api import connection_refusals as refusals
from couponsvc.api.connection_refusals import Refusal
from couponsvc.api.connection_room import ConnectionRoom
from couponsvc.api.head_rules import refusal_of_head


class _Refused(Exception):
    """Leaves the parser; it ends every exception of a callback by raising one of its own."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal: Final = refusal


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `feed` takes bytes for the HTTP parser; `data_received` is left to who derives."""

    def __init__(
        self,
        room: ConnectionRoom,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._room: Final = room
        self.parsing = False
        """Whether the parser is within a message; also true when the connection reads no more."""
        self.running: RequestResponseCycle | None = None
        """What was last begun to be answered; others may be queued behind it."""
        self.served = False
        self.idle_since_s = self.loop.time()
        self.due_s = 0.0
        """When the rest of what is being read must have come; 0 when nothing is."""
        self._due_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._message_bytes = 0
        """Read of the message that is not complete yet."""
        self._deaf = False
        """Whatever still arrives is thrown away."""
        self._last_words: bytes | None = None
        """To be written after the answers that are under way."""

    # --- reading ------------------------------------------------------------------------------
    def feed(self, data: bytes) -> None:
        """Take bytes for the HTTP parser."""
        if self._deaf:
            return
        self._message_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._stop_reading()  # nothing else is spoken here: that request is answered as the last one
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.refuse(cause.refusal if isinstance(cause, _Refused) else refusals.MALFORMED)
            return
        if self._in_head and self._message_bytes > limits.HEAD_MAX_BYTES:
            self.refuse(refusals.HEAD_TOO_LARGE)
        elif self._message_bytes > limits.MESSAGE_MAX_BYTES:
            self.refuse(refusals.MESSAGE_TOO_LARGE)
        elif self._message_bytes and not self.due_s:  # line ends ahead of a request
            self.expect_rest_within(limits.HEAD_TIMEOUT_S)
        elif self.due_s:
            self._start_due_timer()

    def expect_rest_within(self, timeout_s: float) -> None:
        """What is being read must be complete by then."""
        self.due_s = self.loop.time() + timeout_s
        self._start_due_timer()

    def _start_due_timer(self) -> None:
        """Let one run; never for longer than a head has, so that it is never late for the next one."""
        if self._due_timer is None:
            left_s = min(self.due_s - self.loop.time(), limits.HEAD_TIMEOUT_S)
            self._due_timer = self.loop.call_later(left_s, self._look_what_is_due)

    def _look_what_is_due(self) -> None:
        self._due_timer = None
        if not self.due_s or self._deaf:
            return
        if self.due_s > self.loop.time():
            self._start_due_timer()
        elif self._in_head:
            self.refuse(refusals.SLOW_HEAD)
        elif self.parsing or not self._message_bytes:  # of the parser, or held by who derives
            self.refuse(refusals.SLOW_BODY)
        else:
            self.refuse(refusals.NOTHING_ASKED)

    # --- callbacks of the parser --------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Begin a head."""
        self.parsing = self._in_head = True
        self.due_s = self.loop.time() + limits.HEAD_TIMEOUT_S
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field. A trailer is none (RFC 9110 §6.5.1) and is dropped."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse what could be read otherwise; else let the request be answered."""
        upgrades = self.parser.should_upgrade()
        refusal = refusal_of_head(self.url, self.headers, self.parser.get_http_version(), upgrades=upgrades)
        if refusal is None and len(self.pipeline) >= limits.PIPELINED_MAX_COUNT:
            refusal = refusals.PIPELINED
        if refusal is not None:
            raise _Refused(refusal)
        self._in_head = False
        self.due_s = self.loop.time() + limits.BODY_TIMEOUT_S
        super().on_headers_complete()
        if upgrades:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Be between messages."""
        self.parsing = False
        self.due_s = 0.0
        self._message_bytes = 0
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return False

    # --- ending -------------------------------------------------------------------------------
    def refuse(self, refusal: Refusal) -> None:
        """End the connection with an answer, after those of the requests before it."""
        refusals.count(refusal)
        body_of = self.cycle if self.parsing and not self._in_head else None
        self._stop_reading()
        answer = refusal.answer
        if body_of is not None and self.pipeline and self.pipeline[0][0] is body_of:
            self.pipeline.popleft()
        elif body_of is not None and body_of is self.running:  # its application waits for the body
            if body_of.response_started:
                answer = b""  # an answer is there already, or breaks off
            body_of.disconnected = True
            body_of.message_event.set()
            self.running = None
        self._last_words = answer
        if not self.busy:
            self._part()

    def _stop_reading(self) -> None:
        self._deaf = self.parsing = True
        self.due_s = 0.0

    def _part(self) -> None:
        """Say the last words, and let the client read them before the connection is gone."""
        transport = self.transport
        if transport.is_closing():
            return
        if self._last_words:
            transport.write(self._last_words)
        if transport.can_write_eof():
            transport.write_eof()
            self.flow.resume_reading()  # a close with unread bytes would take the answer with it
            self.loop.call_later(limits.LINGER_S, transport.abort)
        else:
            self._close()

    def _close(self) -> None:
        """Close, whether or not the client ever reads what is still to be sent."""
        self.transport.close()
        self.loop.call_later(limits.LINGER_S, self.transport.abort)

    @property
    def busy(self) -> bool:
        """Whether an answer is under way, or queued; not while its own request is still coming in."""
        running = self.running
        if running is None or running.response_complete:
            return bool(self.pipeline)
        return self._deaf or not (self.parsing and not self._in_head and running is self.cycle)

    def leave(self) -> None:
        """Close at once."""
        self.transport.abort()

    # --- life of the connection ---------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Be watched from the first moment, and make room or go."""
        super().connection_made(transport)
        refusals.OPEN.inc()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if not self._room.admits(self, self.connections):  # type: ignore[arg-type]  # made by us, all
            refusals.count(refusals.CROWDED)
            self._stop_reading()
            transport.write(refusals.CROWDED.answer)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer and tell what runs that nobody waits for it, also where others are queued."""
        refusals.OPEN.dec()
        for timer in (self._due_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        running, self.running = self.running, None
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - as uvicorn
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Begin to be idle. The running timer is kept: one per connection instead of one per grab."""
        self.idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None or self.pipeline:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self.flow.resume_reading()
        if self._last_words is not None and not self.busy:
            self._part()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection where it was idle for the whole time; look again otherwise."""
        self.timeout_keep_alive_task = None
        if self.due_s or self.busy:
            return  # the end of that request starts the timer again
        left_s = self.idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        elif not self.transport.is_closing():
            self._close()

    def pause_writing(self) -> None:
        """Give the client time to read what it asked for."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(limits.UNREAD_TIMEOUT_S, self._give_up_writing)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _give_up_writing(self) -> None:
        self._unread_timer = None
        refusals.count(refusals.UNREAD)
        self.transport.abort()
