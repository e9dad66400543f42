"""The lane: answers `POST /v1/drops/{drop_id}/grabs` itself and passes everything else on.

Why beside FastAPI: an empty endpoint with a pydantic body costs about 150 µs of CPU per request
there and 25 µs as a plain ASGI callable (docs/decisions/0002). It behaves in every visible way
like the rest of the API and is described in the same OpenAPI document. Under uvicorn most grabs
do not even come this way (`api.express`); those that arrive in pieces do, and all of them do on
any other ASGI server.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from couponsvc import limits
from couponsvc.api.entrance import Entrance, Refused
from couponsvc.api.grab_answers import Reply
from couponsvc.support.signing import Request, combine

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX: Final = "/v1/drops/"
SUFFIX: Final = "/grabs"
_SCHEMES: Final = {"http": b"http", "https": b"https"}


class GrabLane:
    """An ASGI application in front of `rest`, which gets every request that is not a grab."""

    def __init__(self, rest: Application, entrance: Entrance) -> None:
        self._rest: Final = rest
        self.entrance: Final = entrance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a grab, or pass the request on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            if path.startswith(PREFIX) and path.endswith(SUFFIX):
                drop_id = path[len(PREFIX) : -len(SUFFIX)]
                if "/" not in drop_id:
                    await self._answer(drop_id, scope, receive, send)
                    return
        await self._rest(scope, receive, send)

    async def _answer(self, drop_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        answered: asyncio.Future[tuple[Reply, bytes]] = asyncio.get_running_loop().create_future()

        def take(reply: Reply, request_id: bytes) -> None:
            if not answered.done():
                answered.set_result((reply, request_id))

        body = await _read_body(receive)
        if body is None:
            return  # the client went away; nobody is left to answer
        request = Request(
            scope["method"],
            scope["raw_path"],
            scope["query_string"],
            combine(scope["headers"]),
            body,
            _SCHEMES.get(scope["scheme"], b""),
        )
        if len(body) > limits.GRAB_BODY_MAX_BYTES:
            detail = f"A grab's body has at most {limits.GRAB_BODY_MAX_BYTES} bytes."
            self.entrance.refuse(request, Refused("body_too_large", detail), take)
        else:
            self.entrance.admit(drop_id, request, take)
        (status, content, headers), request_id = await answered
        length = (b"content-length", b"%d" % len(content))
        start = {"type": "http.response.start", "status": status}
        await send({**start, "headers": [*headers, length, (b"x-request-id", request_id)]})
        await send({"type": "http.response.body", "body": content})


async def _read_body(receive: Receive) -> bytes | None:
    """A body, up to just over the limit; None where the client went away before its end."""
    body = b""
    more = True
    while more and len(body) <= limits.GRAB_BODY_MAX_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
