"""The lane: answers `POST /v1/drops/{drop_id}/grabs` itself and passes everything else on.

Why beside FastAPI: an empty endpoint with a pydantic body costs about 150 µs of CPU per request
there and 25 µs as a plain ASGI callable (docs/decisions/0002). It behaves in every visible way
like the rest of the API and is described in the same OpenAPI document.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any, Final

import structlog

from couponsvc import limits
from couponsvc.api import grab_answers, grab_metrics
from couponsvc.api.auth import Authenticator, KeyNotCached, Principal, Unauthenticated
from couponsvc.api.grab_body import GrabBody, InvalidBody, read_grab_body
from couponsvc.api.problems import render_problem
from couponsvc.batch.desk import Desk, Overloaded
from couponsvc.programs.catalog import DropCatalog, Listing
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.grab import Grab, holder_of

log = structlog.get_logger("lane")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX: Final = "/v1/drops/"
SUFFIX: Final = "/grabs"
_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}").fullmatch
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % limits.REQUEST_ID_MAX_CHARS).fullmatch

_Reply = tuple[int, bytes, Sequence[tuple[bytes, bytes]]]


class _Refused(Exception):
    """The grab is answered with this problem before it reaches the desk."""

    def __init__(self, code: str, detail: str | None = None) -> None:
        super().__init__(code)
        self.code: Final = code
        self.detail: Final = detail


class GrabLane:
    """An ASGI application in front of `rest`, which gets every request that is not a grab."""

    def __init__(
        self, rest: Application, *, authenticator: Authenticator, catalog: DropCatalog, desk: Desk
    ) -> None:
        self._rest: Final = rest
        self._authenticator: Final = authenticator
        self._catalog: Final = catalog
        self._desk: Final = desk
        self._request_prefix: Final = token_hex(6)
        self._request_numbers: Final = count(1)

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
        began = perf_counter()
        request_id = self._request_id(scope["headers"])
        try:
            status, body, headers = await self._grab(drop_id, scope, receive)
        except _Refused as refused:
            status, body, headers = _problem(refused.code, refused.detail)
        except ClientDisconnect:
            return
        except Exception as error:
            log.exception("a grab failed", request_id=request_id.decode(), error=type(error).__name__)
            status, body, headers = _problem("internal", None)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)],
            }
        )
        await send({"type": "http.response.body", "body": body})
        grab_metrics.answered(status, perf_counter() - began)

    async def _grab(self, drop_id: str, scope: Scope, receive: Receive) -> _Reply:
        body = await _read_body(receive, scope["headers"])
        principal = await self._authenticate(scope, body)
        if "grab" not in principal.scopes or principal.partner_no is None:
            raise _Refused("forbidden", "A grab needs a partner's credential with the scope grab.")
        listing = await self._listing(drop_id, principal.partner_no)
        try:
            asked = read_grab_body(body)
        except InvalidBody as error:
            raise _Refused("invalid_request", str(error)) from None
        if asked.region and listing.region_prefix and not asked.region.startswith(listing.region_prefix):
            raise _Refused("not_eligible")
        answer = await self._decide(drop_id, principal.partner_no, listing, asked, scope["headers"])
        grab_metrics.TALLY.count(answer.kind.name.lower())
        # Terms are frozen with the first grant, so the listing of the last submission renders it.
        listing = self._catalog.get(drop_id) or listing
        return grab_answers.reply(answer, listing, asked)

    async def _decide(
        self,
        drop_id: str,
        partner_no: int,
        listing: Listing,
        asked: GrabBody,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> Answer:
        confirm = not _wants_async(headers)
        holder = holder_of(partner_no, asked.person_token)
        for _ in range(limits.RESUBMIT_MAX_COUNT + 1):
            grab = Grab(
                listing.drop.drop_no, holder, asked.out_request_no, asked.channel or "", asked.region or ""
            )
            try:
                answer = await self._desk.submit(listing.drop, grab, confirm=confirm)
            except Overloaded:
                return Answer(AnswerKind.OVERLOADED)
            if answer.kind is not AnswerKind.AGAIN:
                return answer
            # The epoch moved on, or the grant that stood in the way is gone: read anew, ask anew.
            try:
                listing = await self._catalog.refresh(drop_id) or listing
            except Exception as error:  # noqa: BLE001 - Postgres away: the caller may ask again
                log.warning("definition not read", error=type(error).__name__)
                break
        return Answer(AnswerKind.CLOSED, reason="rebuilding")

    async def _authenticate(self, scope: Scope, body: bytes) -> Principal:
        arguments = (
            scope["method"],
            scope["raw_path"],
            scope["query_string"],
            scope["headers"],
            body,
            scope["scheme"],
        )
        try:
            try:
                return self._authenticator.check(*arguments)
            except KeyNotCached as unknown:
                await self._authenticator.refresh_key(unknown.key_id)
                return self._authenticator.check(*arguments)
        except KeyNotCached as unknown:
            raise _Refused("unauthenticated", "The key is not known or no longer live.") from unknown
        except Unauthenticated as refused:
            raise _Refused("unauthenticated", str(refused)) from None

    async def _listing(self, drop_id: str, partner_no: int) -> Listing:
        listing = self._catalog.get(drop_id)
        if listing is None:
            if _SLUG(drop_id) is None:
                raise _Refused("unknown_drop")
            try:
                listing = await self._catalog.find(drop_id)
            except Exception as error:
                log.warning("definition not read", error=type(error).__name__)
                raise _Refused("ledger_unavailable") from error
        if listing is None or partner_no not in listing.drop.partners:
            raise _Refused("unknown_drop")
        return listing

    def _request_id(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        for name, value in headers:
            if name == b"x-request-id" and _REQUEST_ID(value):
                return value
        return f"{self._request_prefix}-{next(self._request_numbers):x}".encode()


class ClientDisconnect(Exception):
    """The client went away before its request was complete; nobody is left to answer."""


async def _read_body(receive: Receive, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise _Refused("invalid_request", "Send the body without content coding.")
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        if len(body) > limits.GRAB_BODY_MAX_BYTES:
            break
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(body) > limits.GRAB_BODY_MAX_BYTES:
        raise _Refused("body_too_large", f"A grab's body has at most {limits.GRAB_BODY_MAX_BYTES} bytes.")
    return body


def _wants_async(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"prefer" and b"respond-async" in [part.strip().lower() for part in value.split(b",")]
        for name, value in headers
    )


def _problem(code: str, detail: str | None) -> _Reply:
    status, body = render_problem(code, detail=detail)
    return status, body, grab_answers.problem_headers(status)
