"""One grab on its way from its bytes to its answer."""

from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Final, NamedTuple, Protocol

import structlog

from couponsvc import limits
from couponsvc.api import grab_answers, grab_metrics
from couponsvc.api.grab_answers import Reply
from couponsvc.api.grab_body import GrabBody
from couponsvc.api.problems import render_problem
from couponsvc.api.rate_line import RateLine
from couponsvc.api.shares import Share
from couponsvc.batch.desk import Desk, Overloaded
from couponsvc.programs.catalog import DropCatalog, Listing
from couponsvc.support.signing import Request
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.grab import Grab

log = structlog.get_logger("entrance")

_OVERLOADED: Final = Answer(AnswerKind.OVERLOADED)

Send = Callable[[Reply, bytes], None]
"""Takes the reply and the request id; called once, and neither waits nor raises."""


class Refused(Exception):
    """The grab is answered with this problem before it reaches the desk."""

    def __init__(self, code: str, detail: str | None = None) -> None:
        super().__init__(code)
        self.code: Final = code
        self.detail: Final = detail


class Wanted(NamedTuple):
    """A proven grab."""

    listing: Listing
    grab: Grab
    body: GrabBody
    confirm: bool
    share: Share
    """Of the partner in this process."""
    line: RateLine | None
    """Of the partner, where it is limited."""


class Way(Protocol):
    """What a passage needs of the entrance (`api.entrance.Entrance`)."""

    @property
    def desk(self) -> Desk:
        """Where grabs are handed in."""
        ...

    @property
    def catalog(self) -> DropCatalog:
        """Where drops are known."""
        ...

    def go_on(self, passage: "Passage") -> None:
        """Prove and decide a grab that nothing keeps out."""
        ...

    def start(self, work: Coroutine[object, object, None], passage: "Passage") -> None:
        """Run what waits for a reading; whatever ends it, the grab is answered."""
        ...


class Passage:
    """One grab on its way; holds what its answer needs."""

    __slots__ = (
        "_entrance",
        "_resubmit_count",
        "_send",
        "_wanted",
        "began_s",
        "drop_id",
        "request",
        "request_id",
    )

    def __init__(self, entrance: Way, drop_id: str, request: Request, request_id: bytes, send: Send) -> None:
        self.began_s: Final = perf_counter()
        self._entrance: Final = entrance
        self._send: Final = send
        self._resubmit_count = 0
        self._wanted: Wanted
        self.drop_id: Final = drop_id
        self.request: Final = request
        self.request_id: Final = request_id

    def go_on(self) -> None:
        """It waited in a line and it is its turn: what was proven before need not be proven again."""
        if hasattr(self, "_wanted"):
            self.hand_in(self._wanted)
        else:
            self._entrance.go_on(self)

    def hand_in(self, wanted: Wanted) -> None:
        """Put the grab on the desk, when its partner's share has room for it."""
        self._wanted = wanted
        wanted.share.admit(self)

    def enter(self) -> None:
        """Put it on the desk."""
        wanted = self._wanted
        line = wanted.line
        if line is not None:
            line.pace.use()
        try:
            self._entrance.desk.hand_in(
                wanted.listing.drop,
                wanted.grab,
                self._tell,
                confirm=wanted.confirm,
                pace=None if line is None else line.pace,
            )
        except Overloaded:
            self._tell(_OVERLOADED)

    def _tell(self, answer: Answer) -> None:
        """Take the desk's answer. Never raises: the desk's loop serves everybody."""
        try:
            wanted = self._wanted
            wanted.share.leave()
            if answer.kind is AnswerKind.AGAIN:
                self._entrance.start(self._decide_again(wanted), self)
                return
            if answer.kind is AnswerKind.RATE_LIMITED and wanted.line is not None:
                wanted.line.take_back(self)
                return
            reply = grab_answers.reply(answer, wanted.listing, wanted.body)
            grab_metrics.told(answer.kind)
            self.reply(reply)
        except Exception as error:  # noqa: BLE001 - as said
            self.fail(error)

    async def _decide_again(self, wanted: Wanted) -> None:
        """The epoch moved on, or the grant that stood in the way is gone: read anew, ask anew."""
        if self._resubmit_count < limits.RESUBMIT_MAX_COUNT:
            self._resubmit_count += 1
            try:
                listing = await self._entrance.catalog.refresh(self.drop_id)
            except Exception as error:  # noqa: BLE001 - Postgres away: the caller may ask again
                log.warning("definition not read", drop_id=self.drop_id, error=type(error).__name__)
            else:
                self.hand_in(wanted._replace(listing=listing or wanted.listing))
                return
        reply = grab_answers.reply(
            Answer(AnswerKind.CLOSED, reason="rebuilding"), wanted.listing, wanted.body
        )
        grab_metrics.told(AnswerKind.CLOSED)
        self.reply(reply)

    def refuse(self, refused: Refused) -> None:
        """Answer with a problem that needed no decision."""
        status, body = render_problem(refused.code, detail=refused.detail)
        self.reply((status, body, grab_answers.problem_headers(status)))

    def fail(self, error: Exception) -> None:
        """Answer a failure of ours; it is logged without anything of the request but its id."""
        log.error(
            "a grab failed",
            request_id=self.request_id.decode(),
            error=type(error).__name__,
            exc_info=error,
        )
        self.refuse(Refused("internal"))

    def reply(self, reply: Reply) -> None:
        """Send the answer."""
        self._send(reply, self.request_id)
        grab_metrics.answered(reply[0], perf_counter() - self.began_s)
