"""What happens around every request: its id, its body, who sends it, and what if it fails.

Plain ASGI: Starlette's BaseHTTPMiddleware cancels handlers half-way when a client goes away, and
a signature covers the raw bytes of the body, so the body is read here, before anything parses it.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any, Final

import structlog

from couponsvc import limits
from couponsvc.api import metrics
from couponsvc.api.auth import Authenticator, Principal, Unauthenticated
from couponsvc.api.handlers import problem_of, send_problem
from couponsvc.api.problems import ProblemAnswer
from couponsvc.support import logs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PROTECTED_PREFIX: Final = "/v1/"
"""Everything below needs a credential; health, metrics and documentation do not."""
UNROUTED: Final = "none"
"""Route label of a request that no route took."""

_FAILED: Final = "Something failed here; ask again, and report the X-Request-Id."
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % limits.REQUEST_ID_MAX_CHARS).fullmatch

log = logs.get("api")


class RequestContext:
    """Gives every request an id, counts it, and turns a failure into a problem.

    A route that waits for something to happen says for how long in `scope["state"]["waited_s"]`: it
    is left out of the time that the answer took.
    """

    def __init__(self, app: Application) -> None:
        self._app: Final = app
        self._prefix: Final = token_hex(6)
        self._numbers: Final = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        request_id = self._request_id(scope["headers"])
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                if status:  # half an answer is sent: only breaking the connection tells the client
                    log.exception("an answer broke off", route=_route(scope))
                    raise
                answer = problem_of(error)
                if answer is None:
                    log.exception("a request failed", route=_route(scope))
                    answer = ProblemAnswer("internal", _FAILED)
                await send_problem(send_with_id, answer)
            finally:
                if status:  # else the client went away before it had asked
                    taken_s = perf_counter() - began - scope.get("state", {}).get("waited_s", 0.0)
                    metrics.request_answered(_route(scope), scope["method"], status, max(taken_s, 0.0))

    def _request_id(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        for name, value in headers:
            if name == b"x-request-id" and _REQUEST_ID(value):
                return value
        return f"{self._prefix}-{next(self._numbers):x}".encode()


class Authentication:
    """Reads the body, finds out who sends it, and hands both on: `scope["state"]["principal"]`."""

    def __init__(self, app: Application, authenticator: Authenticator) -> None:
        self._app: Final = app
        self._authenticator: Final = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(PROTECTED_PREFIX):
            await self._app(scope, receive, send)
            return
        body = await _read_body(receive, scope["headers"])
        if body is None:
            return
        scope.setdefault("state", {})["principal"] = await self._authenticate(scope, body)
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _authenticate(self, scope: Scope, body: bytes) -> Principal:
        try:
            return await self._authenticator.authenticate(
                scope["method"],
                scope["raw_path"],
                scope["query_string"],
                scope["headers"],
                body,
                scope["scheme"],
            )
        except Unauthenticated as refused:
            raise ProblemAnswer("unauthenticated", str(refused)) from None


async def _read_body(receive: Receive, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The whole body, or None where the client went away.

    Raises:
        ProblemAnswer: it is too large, or compressed.
    """
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise ProblemAnswer("invalid_request", "Send the body without content coding.")
        if name == b"content-length" and value.isdigit() and int(value) > limits.BODY_MAX_BYTES:
            raise _too_large()
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limits.BODY_MAX_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large() -> ProblemAnswer:
    return ProblemAnswer("body_too_large", f"A body has at most {limits.BODY_MAX_BYTES} bytes.")


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", None) or UNROUTED
