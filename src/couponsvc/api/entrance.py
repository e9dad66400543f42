"""Where a grab comes in, whoever read it off the wire: proven, read, decided, answered.

Nothing here waits unless something is not in memory yet (a new key, a new drop): the usual grab
passes from its bytes to the desk's queue in one call, and from its decision to its answer in
another. Only then is a task made for it.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Final, NamedTuple

import structlog

from couponsvc import limits
from couponsvc.api import grab_answers, grab_metrics
from couponsvc.api.auth import Authenticator, KeyNotCached, Unauthenticated
from couponsvc.api.grab_answers import Reply
from couponsvc.api.grab_body import GrabBody, InvalidBody, read_grab_body
from couponsvc.api.problems import render_problem
from couponsvc.batch.desk import Desk, Overloaded
from couponsvc.programs.catalog import DropCatalog, Listing
from couponsvc.support.signing import Request
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.grab import Grab, holder_of

log = structlog.get_logger("entrance")

_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}").fullmatch
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % limits.REQUEST_ID_MAX_CHARS).fullmatch
_OVERLOADED: Final = Answer(AnswerKind.OVERLOADED)
READINGS_MAX_COUNT: Final = 3
"""A grab may need its key read, then its drop; what is missing after that stays missing."""

Send = Callable[[Reply, bytes], None]
"""Takes the reply and the request id; called once, and neither waits nor raises."""


class Refused(Exception):
    """The grab is answered with this problem before it reaches the desk."""

    def __init__(self, code: str, detail: str | None = None) -> None:
        super().__init__(code)
        self.code: Final = code
        self.detail: Final = detail


class _DropNotCached(Exception):
    """The drop is not in memory; it may be new."""


class _Wanted(NamedTuple):
    """A proven grab."""

    listing: Listing
    grab: Grab
    body: GrabBody
    confirm: bool


class Entrance:
    """The way of every grab of one API process."""

    def __init__(self, *, authenticator: Authenticator, catalog: DropCatalog, desk: Desk) -> None:
        self.authenticator: Final = authenticator
        self.catalog: Final = catalog
        self.desk: Final = desk
        self._prefix: Final = token_hex(6).encode()
        self._numbers: Final = count(1)
        self._reading: Final[set[asyncio.Task[None]]] = set()
        """Grabs that wait for a reading; bounded by the connections, one request of each at a time."""

    def admit(self, drop_id: str, request: Request, send: Send) -> None:
        """Take a grab whose body is complete; `send` gets the answer, now or later."""
        passage = _Passage(self, drop_id, request, self._request_id(request.fields), send)
        if self.desk.full:  # before its signature is checked: what is refused must be cheap
            passage.refuse(Refused("overloaded"))
            return
        try:
            wanted = self._read(drop_id, request)
        except (_DropNotCached, KeyNotCached):
            self.start(self._read_on(passage), passage)
        except Refused as refused:
            passage.refuse(refused)
        except Exception as error:  # noqa: BLE001 - the caller gets an answer whatever happens
            passage.fail(error)
        else:
            passage.hand_in(wanted)

    def refuse(self, request: Request, refused: Refused, send: Send) -> None:
        """Answer a grab that could not be read off the wire."""
        _Passage(self, "", request, self._request_id(request.fields), send).refuse(refused)

    def start(self, work: Coroutine[object, object, None], passage: "_Passage") -> None:
        """Run what waits for a reading; whatever ends it, the grab is answered."""

        async def guarded() -> None:
            try:
                await work
            except Refused as refused:
                passage.refuse(refused)
            except Exception as error:  # noqa: BLE001 - as in `admit`
                passage.fail(error)

        task = asyncio.get_running_loop().create_task(guarded(), name="grab that reads")
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    def _request_id(self, fields: dict[bytes, bytes]) -> bytes:
        given = fields.get(b"x-request-id")
        if given is not None and _REQUEST_ID(given):
            return given
        return b"%b-%x" % (self._prefix, next(self._numbers))

    def _read(self, drop_id: str, request: Request) -> _Wanted:
        """Prove who sends it, find the drop, read the body: in this order, without waiting.

        Raises:
            Refused: it is answered with a problem.
            KeyNotCached, _DropNotCached: something has to be read first.
        """
        fields = request.fields
        if fields.get(b"content-encoding", b"identity") != b"identity":
            raise Refused("invalid_request", "Send the body without content coding.")
        try:
            principal = self.authenticator.check_request(request)
        except KeyNotCached:
            raise
        except Unauthenticated as refused:
            raise Refused("unauthenticated", str(refused)) from None
        partner_no = principal.partner_no
        if partner_no is None or "grab" not in principal.scopes:
            raise Refused("forbidden", "A grab needs a partner's credential with the scope grab.")
        listing = self.catalog.get(drop_id)
        if listing is None:
            raise _DropNotCached
        if partner_no not in listing.drop.partners:
            raise Refused("unknown_drop")
        try:
            body = read_grab_body(request.body)
        except InvalidBody as error:
            raise Refused("invalid_request", str(error)) from None
        region = body.region or ""
        if region and not region.startswith(listing.region_prefix):
            raise Refused("not_eligible")
        grab = Grab(
            listing.drop.drop_no,
            holder_of(partner_no, body.person_token),
            body.out_request_no,
            body.channel or "",
            region,
        )
        confirm = b"prefer" not in fields or not _wants_async(fields[b"prefer"])
        return _Wanted(listing, grab, body, confirm)

    async def _read_on(self, passage: "_Passage") -> None:
        """Read what is missing, once each, and go on."""
        key_id: str | None = None
        for _ in range(READINGS_MAX_COUNT):
            try:
                wanted = self._read(passage.drop_id, passage.request)
            except KeyNotCached as unknown:
                if unknown.key_id == key_id:  # just read, and not there
                    raise Refused("unauthenticated", str(unknown)) from None
                key_id = unknown.key_id
                await self.authenticator.refresh_key(key_id)
            except _DropNotCached:
                await self._find(passage.drop_id)
            else:
                passage.hand_in(wanted)
                return
        raise Refused("unknown_drop")

    async def _find(self, drop_id: str) -> None:
        if _SLUG(drop_id) is None:
            raise Refused("unknown_drop")
        try:
            listing = await self.catalog.find(drop_id)
        except Exception as error:
            log.warning("definition not read", error=type(error).__name__)
            raise Refused("ledger_unavailable") from error
        if listing is None:
            raise Refused("unknown_drop")


class _Passage:
    """One grab on its way; holds what its answer needs."""

    __slots__ = (
        "_began",
        "_entrance",
        "_resubmit_count",
        "_send",
        "_wanted",
        "drop_id",
        "request",
        "request_id",
    )

    def __init__(
        self, entrance: Entrance, drop_id: str, request: Request, request_id: bytes, send: Send
    ) -> None:
        self._began: Final = perf_counter()
        self._entrance: Final = entrance
        self._send: Final = send
        self._resubmit_count = 0
        self._wanted: _Wanted
        self.drop_id: Final = drop_id
        self.request: Final = request
        self.request_id: Final = request_id

    def hand_in(self, wanted: _Wanted) -> None:
        """Put the grab on the desk."""
        self._wanted = wanted
        try:
            self._entrance.desk.hand_in(wanted.listing.drop, wanted.grab, self._tell, confirm=wanted.confirm)
        except Overloaded:
            self._tell(_OVERLOADED)

    def _tell(self, answer: Answer) -> None:
        """Take the desk's answer. Never raises: the desk's loop serves everybody."""
        try:
            if answer.kind is AnswerKind.AGAIN:
                self._entrance.start(self._decide_again(), self)
                return
            wanted = self._wanted
            reply = grab_answers.reply(answer, wanted.listing, wanted.body)
            grab_metrics.told(answer.kind)
            self._answer(reply)
        except Exception as error:  # noqa: BLE001 - as said
            self.fail(error)

    async def _decide_again(self) -> None:
        """The epoch moved on, or the grant that stood in the way is gone: read anew, ask anew."""
        if self._resubmit_count < limits.RESUBMIT_MAX_COUNT:
            self._resubmit_count += 1
            try:
                listing = await self._entrance.catalog.refresh(self.drop_id)
            except Exception as error:  # noqa: BLE001 - Postgres away: the caller may ask again
                log.warning("definition not read", drop_id=self.drop_id, error=type(error).__name__)
            else:
                self.hand_in(self._wanted._replace(listing=listing or self._wanted.listing))
                return
        self._tell(Answer(AnswerKind.CLOSED, reason="rebuilding"))

    def refuse(self, refused: Refused) -> None:
        """Answer with a problem that needed no decision."""
        status, body = render_problem(refused.code, detail=refused.detail)
        self._answer((status, body, grab_answers.problem_headers(status)))

    def fail(self, error: Exception) -> None:
        """Answer a failure of ours; it is logged without anything of the request but its id."""
        log.error(
            "a grab failed",
            request_id=self.request_id.decode(),
            error=type(error).__name__,
            exc_info=error,
        )
        self.refuse(Refused("internal"))

    def _answer(self, reply: Reply) -> None:
        self._send(reply, self.request_id)
        grab_metrics.answered(reply[0], perf_counter() - self._began)


def _wants_async(prefer: bytes) -> bool:
    return b"respond-async" in [part.strip().lower() for part in prefer.split(b",")]
