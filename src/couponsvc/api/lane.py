"""The lane: answers `POST /v1/drops/{drop_id}/grabs` itself and passes everything else on.

Why beside FastAPI: an empty endpoint with a pydantic body costs about 150 µs of CPU per request
there and 25 µs as a plain ASGI callable (docs/decisions/0002). It behaves in every visible way
like the rest of the API and is described in the same OpenAPI document.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any, Final

import structlog

from couponsvc import limits
from couponsvc.api import grab_answers, grab_metrics
from couponsvc.api.auth import Authenticator, KeyNotCached, Principal, Unauthenticated
from couponsvc.api.grab_body import InvalidBody, read_grab_body
from couponsvc.api.problems import render_problem
from couponsvc.batch.desk import Desk, Overloaded
from couponsvc.programs.catalog import DropCatalog, Listing
from couponsvc.support.signing import combine
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
        self._request_prefix: Final = token_hex(6).encode()
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
        fields = combine(scope["headers"])
        request_id = fields.get(b"x-request-id", b"")
        if not _REQUEST_ID(request_id):
            request_id = b"%b-%x" % (self._request_prefix, next(self._request_numbers))
        try:
            status, body, headers = await self._grab(drop_id, scope, fields, receive)
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

    async def _grab(
        self, drop_id: str, scope: Scope, fields: dict[bytes, bytes], receive: Receive
    ) -> grab_answers.Reply:
        """The way of a grab. On it, only the body and the decision are waited for."""
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False) or len(body) > limits.GRAB_BODY_MAX_BYTES or not body:
            body = await _read_rest(message, receive)
        if fields.get(b"content-encoding", b"identity") != b"identity":
            raise _Refused("invalid_request", "Send the body without content coding.")
        try:
            principal = self._authenticator.check_fields(scope, fields, body)
        except Unauthenticated as unknown:
            principal = await self._authenticate_again(scope, body, unknown)
        partner_no = principal.partner_no
        if partner_no is None or "grab" not in principal.scopes:
            raise _Refused("forbidden", "A grab needs a partner's credential with the scope grab.")
        listing = self._catalog.get(drop_id) or await self._find(drop_id)
        if partner_no not in listing.drop.partners:
            raise _Refused("unknown_drop")
        try:
            asked = read_grab_body(body)
        except InvalidBody as error:
            raise _Refused("invalid_request", str(error)) from None
        region = asked.region or ""
        if region and not region.startswith(listing.region_prefix):
            raise _Refused("not_eligible")
        confirm = b"prefer" not in fields or not _wants_async(fields[b"prefer"])
        drop = listing.drop
        grab = Grab(
            drop.drop_no,
            holder_of(partner_no, asked.person_token),
            asked.out_request_no,
            asked.channel or "",
            region,
        )
        try:
            answer = await self._desk.submit(drop, grab, confirm=confirm)
        except Overloaded:
            answer = Answer(AnswerKind.OVERLOADED)
        if answer.kind is AnswerKind.AGAIN:
            answer, listing = await self._decide_again(listing, grab, confirm=confirm)
        grab_metrics.TALLY.count(answer.kind.name)
        return grab_answers.reply(answer, listing, asked)

    async def _decide_again(self, listing: Listing, grab: Grab, *, confirm: bool) -> tuple[Answer, Listing]:
        """The epoch moved on, or the grant that stood in the way is gone: read anew, ask anew."""
        drop_id = listing.drop.drop_id
        for _ in range(limits.RESUBMIT_MAX_COUNT):
            try:
                listing = await self._catalog.refresh(drop_id) or listing
            except Exception as error:  # noqa: BLE001 - Postgres away: the caller may ask again
                log.warning("definition not read", drop_id=drop_id, error=type(error).__name__)
                break
            try:
                answer = await self._desk.submit(listing.drop, grab, confirm=confirm)
            except Overloaded:
                return Answer(AnswerKind.OVERLOADED), listing
            if answer.kind is not AnswerKind.AGAIN:
                return answer, listing
        return Answer(AnswerKind.CLOSED, reason="rebuilding"), listing

    async def _authenticate_again(self, scope: Scope, body: bytes, refused: Unauthenticated) -> Principal:
        """A key that is not in memory may be new: read the table once, then the answer is final."""
        if isinstance(refused, KeyNotCached):
            await self._authenticator.refresh_key(refused.key_id)
            try:
                return self._authenticator.check_fields(scope, combine(scope["headers"]), body)
            except Unauthenticated as final:
                raise _Refused("unauthenticated", str(final)) from None
        raise _Refused("unauthenticated", str(refused)) from None

    async def _find(self, drop_id: str) -> Listing:
        if _SLUG(drop_id) is None:
            raise _Refused("unknown_drop")
        try:
            listing = await self._catalog.find(drop_id)
        except Exception as error:
            log.warning("definition not read", error=type(error).__name__)
            raise _Refused("ledger_unavailable") from error
        if listing is None:
            raise _Refused("unknown_drop")
        return listing


class ClientDisconnect(Exception):
    """The client went away before its request was complete; nobody is left to answer."""


async def _read_rest(message: Message, receive: Receive) -> bytes:
    """A body in several messages, up to the limit."""
    body: bytes = message.get("body", b"")
    while message.get("more_body", False) and len(body) <= limits.GRAB_BODY_MAX_BYTES:
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(body) > limits.GRAB_BODY_MAX_BYTES:
        raise _Refused("body_too_large", f"A grab's body has at most {limits.GRAB_BODY_MAX_BYTES} bytes.")
    return body


def _wants_async(prefer: bytes) -> bool:
    return b"respond-async" in [part.strip().lower() for part in prefer.split(b",")]


def _problem(code: str, detail: str | None) -> grab_answers.Reply:
    status, body = render_problem(code, detail=detail)
    return status, body, grab_answers.problem_headers(status)
