"""From an answer's bytes to a record, and to what the person learns of it."""

from typing import Final, NamedTuple

import msgspec

from couponsvc.client.answers import Refusal
from loadtests.clock import RunClock
from loadtests.persons.person import NOT_STARTED, Step, Told
from loadtests.records import Answered
from loadtests.signed import unix_ms

_decode_refusal: Final = msgspec.json.Decoder(Refusal).decode
_FIRST_REFUSAL: Final = 300
_NOTHING: Final = Refusal()


class Reply(NamedTuple):
    """One exchange: what came back, and when."""

    sent_ms: float
    answered_ms: float
    status: int = 0
    body: bytes = b""
    retry_after_s: float = 0.0
    code: str = ""
    """ABANDONED where the person hung up."""


class Writing:
    """Turns replies of one worker into records and into what persons are told.

    Args:
        worker: Whose clock.
        clock: That clock.
        opens_ms: The opening of the run, by the deployment's clock.
        open_loop: Whether latency counts from when a request was due.
    """

    def __init__(self, worker: str, clock: RunClock, opens_ms: float, *, open_loop: bool) -> None:
        self._worker: Final = worker
        self._clock: Final = clock
        self._opens_ms: Final = opens_ms
        self._open_loop: Final = open_loop

    def settle(
        self, step: Step, drop_id: str, person_token: str, reply: Reply, action: str = ""
    ) -> tuple[Answered, Told]:
        """The record of a reply, and what the person learns."""
        status, code = reply.status, reply.code
        refusal, voucher, retryable = _NOTHING, b"", None
        if status >= _FIRST_REFUSAL:
            refusal = read_refusal(reply.body)
            code, retryable, voucher = refusal.code, refusal.retryable, bytes(refusal.voucher)
        elif status in (200, 201):
            voucher = reply.body
        record = Answered(
            sent_ms=reply.sent_ms,
            answered_ms=reply.answered_ms,
            intended_ms=self._clock.at_ms(step.due_s) if self._open_loop else reply.sent_ms,
            worker=self._worker,
            action=action or step.what,
            drop_id=drop_id,
            person_token=person_token,
            out_request_no=step.number,
            status=status,
            code=code,
            retryable=retryable,
            voucher=voucher,
        )
        opens_s = None
        if code == NOT_STARTED and refusal.opens_at:
            opens_s = (unix_ms(refusal.opens_at) - self._opens_ms) / 1_000
        return record, Told(
            now_s=self._clock.now_s(),
            status=status,
            code=refusal.code,
            retryable=refusal.retryable,
            retry_after_s=reply.retry_after_s,
            opens_s=opens_s,
        )


def read_refusal(body: bytes) -> Refusal:
    """The problem; an empty one where a proxy answered with a page of its own."""
    try:
        return _decode_refusal(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _NOTHING
