"""When to ask again: decisions without input or output. Clients carry them out (see `driving`).

A decision is a generator of steps: a `Request` to send or a `Pause` to make. It is sent the answer
of each request (nothing after a pause), or `Unreachable` is thrown in where nothing could be sent.
"""

import random
import sys
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeVar

from couponsvc.client.answers import LOST, NO_ANSWER, PENDING, UNKNOWN_REQUEST, Answer, ApiRefused
from couponsvc.client.connection import Unreachable
from couponsvc.client.requests import Request, grab_request, look_up_request

T = TypeVar("T")

_NOT_DONE: Final = frozenset({429, 503})
"""Slowed down, unavailable: it was not done. (A 503 may hide a commit whose answer was lost behind the
API; of what must not be done twice that concerns `calls.subscribe`, which says what to do.)"""
_UNKNOWN: Final = frozenset({0, 500, 502, 504})
"""Lost, or broken on the way: it may have been done."""
_UNSETTLED: Final = _NOT_DONE | _UNKNOWN | {202}
"""The number of a grab has no answer yet."""
_REFUSED_FROM: Final = 300
_TOLD_MAX_S: Final = 30.0
"""The service itself says a few seconds; whoever says more (a page of maintenance) is not waited for
inside of one call."""
_TOLD_WITHOUT_END_MAX_S: Final = 300.0
"""Whoever does not give up looks every five minutes whether the day that was announced is over sooner."""


class Pause(NamedTuple):
    """A step: wait."""

    seconds: float


Steps = Generator[Request | Pause, Answer, T]


class AnswerLost(ConnectionError):
    """The request was sent and no answer came: whether it was done is not known."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a caller is. What is a rule (403, 404, 409, 422) is never asked again."""

    attempts_max_count: int
    """`sys.maxsize`: without end."""
    pause_s: float = 0.1
    """Before the second attempt; doubles each time, with jitter."""
    pause_max_s: float = 2.0
    told_max_s: float = _TOLD_MAX_S
    """The longest `Retry-After` that is waited for. A longer one ends the retries with what was answered,
    as if the attempts were used up: nothing is lost, the same may be asked later. Whoever retries without
    end waits this long instead and asks again."""

    @property
    def endless(self) -> bool:
        """Whether these never give up."""
        return self.attempts_max_count == sys.maxsize

    def without_end(self) -> "Retries":
        """The same pauses, without giving up."""
        told_max_s = max(self.told_max_s, _TOLD_WITHOUT_END_MAX_S)
        return replace(self, attempts_max_count=sys.maxsize, told_max_s=told_max_s)

    def ends_with(self, answer: Answer) -> bool:
        """Whether `Retry-After` says longer than is waited for."""
        return not self.endless and (answer.retry_after_s or 0.0) > self.told_max_s

    def pause_before(self, attempt_no: int, answer: Answer) -> Pause:
        """How long to wait before attempt 2, 3, 4 …: at least as `Retry-After` says, up to `told_max_s`.

        Only its form in seconds counts; a date (which the service never sends) is ignored.
        """
        usual_s = min(self.pause_s * 2.0 ** min(attempt_no - 2, 32), self.pause_max_s)
        told_s = min(answer.retry_after_s or 0.0, self.told_max_s)
        share = random.random()  # noqa: S311 - jitter is no secret
        return Pause(max(usual_s * (0.5 + share), told_s * (1.0 + share / 4)))


ONCE: Final = Retries(attempts_max_count=1)
PATIENT: Final = Retries(attempts_max_count=8)
"""Pauses of about 7 s in all: longer than a rebuild or the restart of one process. Where `Retry-After` says
longer, each is that long instead; above 30 s it gives up."""
RELENTLESS: Final = Retries(sys.maxsize, pause_max_s=15.0, told_max_s=_TOLD_WITHOUT_END_MAX_S)
"""For a program that has nothing else to do than to wait until the service is back."""


def insist(retries: Retries, request: Request) -> Steps[Answer]:
    """Send a request, again where it was not done, or where doing it twice is the same.

    Returns:
        The answer, a 2xx.

    Raises:
        ApiRefused: it was refused by a rule, patience ran out, or `Retry-After` asked for too much of it.
        AnswerLost: no answer came; it may have been done.
        Unreachable: nobody listens; it was not done.
    """
    answer, may_be_done = NO_ANSWER, False
    for attempt_no in range(1, retries.attempts_max_count + 1):
        if attempt_no > 1:
            if retries.ends_with(answer):
                break
            yield retries.pause_before(attempt_no, answer)
        try:
            answer = yield request
        except Unreachable:
            if attempt_no == retries.attempts_max_count and not may_be_done:
                raise
            answer = NO_ANSWER
            continue
        may_be_done = may_be_done or answer.status in _UNKNOWN
        if answer.status not in (_NOT_DONE | _UNKNOWN if request.repeatable else _NOT_DONE):
            break
    if answer.outcome == LOST:
        raise AnswerLost(f"no answer to {request.method.decode()} {request.place}")
    if answer.status >= _REFUSED_FROM:
        raise ApiRefused(answer.status, answer.refusal)
    return answer


def grab(
    retries: Retries,
    drop_id: str,
    person_token: str,
    out_request_no: str,
    *,
    channel: str | None = None,
    region: str | None = None,
    so_far: Answer = NO_ANSWER,
) -> Steps[Answer]:
    """Ask with one number until it has an answer: again after silence, 202 (by look-up), 429, 5xx.

    Safe, because a number has one answer, however often it is asked. `so_far` is what an earlier
    attempt was told; with it, the first attempt here pauses too.

    Returns:
        The last answer; refusals are values too (`Answer.outcome`). It is unsettled (`lost`,
        `pending`, 503 …) only where patience ran out, or `Retry-After` asked for too much of it: then a
        voucher may still exist under this number. Keep the number and ask again later, never with a
        new one.
    """
    ask = grab_request(drop_id, person_token, out_request_no, channel=channel, region=region)
    answer, skipped_count = so_far, int(so_far is not NO_ANSWER)
    for attempt_no in range(1, retries.attempts_max_count + 1):
        if attempt_no + skipped_count > 1:
            if retries.ends_with(answer):
                break
            yield retries.pause_before(attempt_no + skipped_count, answer)
        try:
            answer = yield (look_up_request(drop_id, out_request_no) if answer.outcome == PENDING else ask)
        except Unreachable:
            answer = NO_ANSWER
        if answer.status not in _UNSETTLED and answer.outcome != UNKNOWN_REQUEST:
            break
    return answer
