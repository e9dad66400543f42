"""Where a grab comes in, whoever read it off the wire: proven, read, decided, answered.

Nothing here waits unless something is not in memory yet (a new key, a new drop): the usual grab
passes from its bytes to the desk's queue in one call, and from its decision to its answer in
another. Only then is a task made for it.
"""

import asyncio
import re
from collections.abc import Coroutine
from itertools import count
from secrets import token_hex
from typing import Final

import structlog

from couponsvc import limits
from couponsvc.api.auth import Authenticator, KeyNotCached, Unauthenticated
from couponsvc.api.grab_body import InvalidBody, read_grab_body
from couponsvc.api.passage import Passage, Refused, Send, Wanted
from couponsvc.api.rate_line import RateLine, RateLines
from couponsvc.api.shares import Shares
from couponsvc.batch.desk import Desk
from couponsvc.programs.catalog import DropCatalog
from couponsvc.support.signing import Request
from couponsvc.values.grab import Grab, holder_of

__all__ = ["Entrance", "Refused"]

log = structlog.get_logger("entrance")

_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}").fullmatch
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % limits.REQUEST_ID_MAX_CHARS).fullmatch
READINGS_MAX_COUNT: Final = 3
"""A grab may need its key read, then its drop; what is missing after that stays missing."""


class _DropNotCached(Exception):
    """The drop is not in memory; it may be new."""


class _TurnedAway(Exception):
    """The partner's rate is used up."""

    def __init__(self, line: RateLine) -> None:
        super().__init__(line.pace.partner_no)
        self.line: Final = line


class Entrance:
    """The way of every grab of one API process."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        catalog: DropCatalog,
        desk: Desk,
        neighbour_hold_ms: int = limits.NEIGHBOUR_HOLD_MS,
    ) -> None:
        self.authenticator: Final = authenticator
        self.catalog: Final = catalog
        self.desk: Final = desk
        self._lines: Final = RateLines()
        self._shares: Final = Shares(neighbour_hold_ms)
        self._prefix: Final = token_hex(6).encode()
        self._numbers: Final = count(1)
        self._reading: Final[set[asyncio.Task[None]]] = set()
        """Grabs that wait for a reading; bounded by the connections, one request of each at a time."""

    def admit(self, drop_id: str, request: Request, send: Send) -> None:
        """Take a grab whose body is complete; `send` gets the answer, now or later."""
        passage = Passage(self, drop_id, request, self._request_id(request.fields), send)
        # What is refused must be cheap: before its signature is checked.
        limited = self.authenticator.limited
        if limited:
            line = self._lines.named(limited, request.fields)
            if line is not None and line.closed():
                line.take(passage)
                return
        self.go_on(passage)

    def go_on(self, passage: Passage) -> None:
        """Prove and decide a grab that nothing keeps out."""
        if self.desk.full:
            passage.refuse(Refused("overloaded"))
            return
        try:
            wanted = self._read(passage)
        except _TurnedAway as away:
            away.line.take(passage)
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
        Passage(self, "", request, self._request_id(request.fields), send).refuse(refused)

    def start(self, work: Coroutine[object, object, None], passage: Passage) -> None:
        """Run what waits for a reading; whatever ends it, the grab is answered."""

        async def guarded() -> None:
            try:
                await work
            except _TurnedAway as away:
                away.line.take(passage)
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

    def _read(self, passage: Passage) -> Wanted:
        """Prove who sends it, find the drop, read the body: in this order, without waiting.

        Raises:
            Refused: it is answered with a problem.
            _TurnedAway: the partner's rate is used up.
            KeyNotCached, _DropNotCached: something has to be read first.
        """
        request = passage.request
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
        line = None if principal.rate is None else self._lines.of(principal)
        if line is not None and line.closed():
            raise _TurnedAway(line)
        listing = self.catalog.get(passage.drop_id)
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
        return Wanted(listing, grab, body, confirm, self._shares[partner_no], line)

    async def _read_on(self, passage: Passage) -> None:
        """Read what is missing, once each, and go on."""
        key_id: str | None = None
        for _ in range(READINGS_MAX_COUNT):
            try:
                wanted = self._read(passage)
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


def _wants_async(prefer: bytes) -> bool:
    return b"respond-async" in [part.strip().lower() for part in prefer.split(b",")]
