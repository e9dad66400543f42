"""Answers to what is no request, and the count of connections that end for a reason.

Each is written by the connection itself, before any application: the bytes could not be read as a
request, came too slowly, or there is no room. Nothing of what was sent is repeated, in no answer, log
or label.
"""

from http import HTTPStatus
from typing import Final, NamedTuple

from couponsvc.api.grab_answers import problem_headers
from couponsvc.api.problems import render_problem
from couponsvc.support import metrics

_ENDED: Final = metrics.counter(
    "couponsvc_http_connections_ended",
    "Connections that the service ended for what the client did or did not do, by reason.",
    ["reason"],
)
OPEN: Final = metrics.gauge("couponsvc_http_connections", "Connections that are open.")


class Refusal(NamedTuple):
    """Why a connection ends, and the last answer on it."""

    reason: str
    """Value of the metric's label; one of the constants below."""
    answer: bytes
    """Complete; empty where nobody waits for one."""


def _refusal(reason: str, code: str, detail: str | None = None) -> Refusal:
    status, body = render_problem(code, detail=detail)
    fields = b"".join(b"%b: %b\r\n" % header for header in problem_headers(status))
    head = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
    length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    return Refusal(reason, head + fields + length + body)


MALFORMED: Final = _refusal("malformed", "malformed_request")
HEAD_TOO_LARGE: Final = _refusal("head_too_large", "head_too_large")
MESSAGE_TOO_LARGE: Final = _refusal("message_too_large", "body_too_large")
SLOW_HEAD: Final = _refusal("slow_head", "request_timeout")
SLOW_BODY: Final = _refusal("slow_body", "request_timeout")
PIPELINED: Final = _refusal("pipelined", "overloaded")
CROWDED: Final = _refusal("crowded", "overloaded")
"""There is no room, and nobody idle who could leave."""
NOTHING_ASKED: Final = Refusal("nothing_asked", b"")
"""Bytes between requests that begin none."""
EVICTED: Final = Refusal("evicted", b"")
"""Idle for the longest time where somebody new needed the room."""
UNREAD: Final = Refusal("unread", b"")
"""The client does not read its answers."""


def count(refusal: Refusal) -> None:
    """Note that a connection ends."""
    _ENDED.labels(refusal.reason).inc()
