"""The express way: uvicorn's HTTP protocol, with a short way through it for the usual grab.

Why: uvicorn spends as much on a request (parser callbacks, a scope, a task, checked headers, two
writes) as a whole grab may cost. A grab that arrives complete on an idle connection is read here
in one pass and answered with one write; everything else goes through uvicorn as it always did.
"""

import asyncio
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from couponsvc import limits
from couponsvc.api.connection_refusals import Refusal
from couponsvc.api.connection_room import ConnectionRoom
from couponsvc.api.entrance import Entrance
from couponsvc.api.express_head import BEGINS_WITH, ExpressHead, read_head
from couponsvc.api.grab_answers import Headers, Reply
from couponsvc.api.guarded_protocol import GuardedProtocol
from couponsvc.support.signing import Request

_ACCEPTED: Final = 202
"""Its Location differs from answer to answer, so that its head is not worth keeping."""


_OF_STRANGERS: Final = frozenset({401, 503})
"""Statuses of grabs that may have been answered before anything was proven."""


class _NoEvent:
    """What uvicorn sets when a connection is lost; nobody waits for it on the express way."""

    def set(self) -> None:
        """Do nothing."""


_NO_EVENT: Final = _NoEvent()


class _ExpressCycle:
    """One grab and its answer, in the place where uvicorn keeps its request-response cycle.

    Has the attributes that uvicorn's protocol reads of a cycle: whether it is answered, and
    whether the connection is to be kept.
    """

    __slots__ = ("_protocol", "disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self, protocol: "ExpressProtocol") -> None:
        self._protocol: Final = protocol
        self.disconnected = False
        self.keep_alive = True
        self.message_event: Final = _NO_EVENT
        self.response_complete = False

    def answer(self, reply: Reply, request_id: bytes) -> None:
        """Write the whole answer at once, unless the client has gone."""
        self.response_complete = True
        protocol = self._protocol
        transport = protocol.transport
        if self.disconnected or transport.is_closing():
            return
        status, body, headers = reply
        if status not in _OF_STRANGERS:
            protocol.served = True
        begin = _head(status, headers) if status != _ACCEPTED else _head.__wrapped__(status, headers)
        close = b"" if self.keep_alive else b"connection: close\r\n"
        transport.write(
            b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"
            % (begin, len(body), request_id, close, body)
        )
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()


@lru_cache(maxsize=64)
def _head(status: int, headers: Headers) -> bytes:
    """Status line and the headers that every such answer has."""
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), lines)


class ExpressProtocol(GuardedProtocol):
    """One connection. Made by uvicorn; `protocol_of` says how it learns of the entrance."""

    def __init__(
        self,
        entrance: Entrance,
        room: ConnectionRoom,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(room, config, server_state, app_state, _loop)
        self._entrance: Final = entrance
        self._held: bytes = b""
        """A grab whose body is not complete yet; bounded by the limits of head and body."""
        self._held_until_bytes = 0
        """How long it will be."""

    def data_received(self, data: bytes) -> None:
        """Take the express way where the bytes are one usual grab and nothing else is going on."""
        if self._held:
            data = self._held + data
            if len(data) < self._held_until_bytes:
                self._held = data
                return
            self._held = b""
            self.due_s = 0.0
        elif self.parsing or (self.cycle is not None and not self.cycle.response_complete):
            self.feed(data)
            return
        if data.startswith(BEGINS_WITH) and not self.flow.write_paused:
            head = read_head(data)
            if head is not None and len(data) <= head.body_end:
                if len(data) == head.body_end:
                    self._admit(head, data[head.body_begin :])
                else:
                    self._held, self._held_until_bytes = data, head.body_end
                    self.expect_rest_within(limits.BODY_TIMEOUT_S)
                return
        self.feed(data)

    def _admit(self, head: ExpressHead, body: bytes) -> None:
        cycle = _ExpressCycle(self)
        self.cycle = self.running = cycle  # type: ignore[assignment]  # has what is read of one
        scheme = b"https" if self.scheme == "https" else b"http"
        request = Request("POST", head.raw_path, b"", head.fields, body, scheme)
        self._entrance.admit(head.drop_id, request, cycle.answer)

    def refuse(self, refusal: Refusal) -> None:
        """End the connection; what was held of a grab is forgotten."""
        self._held = b""
        super().refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was held."""
        self._held = b""
        super().connection_lost(exc)


def protocol_of(entrance: Entrance, room: ConnectionRoom) -> type[asyncio.Protocol]:
    """What `uvicorn.Config(http=…)` takes: makes an `ExpressProtocol` per connection."""
    return partial(ExpressProtocol, entrance, room)  # type: ignore[return-value]  # uvicorn only calls it
