"""How one request of a partner is made and recorded; the crowd's behaviours are built of these."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Final

from couponsvc.client import Answer, GrabClient, Retries, Unreachable, retrying
from couponsvc.client.answers import NO_ANSWER, PERSON_LIMIT, SOLD_OUT, UNKNOWN_REQUEST
from couponsvc.client.driving import drive_async
from couponsvc.client.requests import Request
from couponsvc.support.signing import HmacKey
from tests.faults.harness.history import GRAB, LOOK_UP, Call, History
from tests.faults.harness.numbers import Number

APP_TIMEOUT_S: Final = 4.0
"""Twice as long as the service waits for a commit; shorter than many pauses here."""
CONNECTIONS_MAX_COUNT: Final = 96
"""Of one partner."""
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 1.0
"""Of `Retry-After` too: a schedule lasts seconds, and pressing too early must harm nobody."""
_UNSETTLED: Final = frozenset({0, 202, 401, 429, 500, 502, 503, 504})
"""401: the clock of one API process is off; another one may know better."""


class Asker:
    """Both partners' connections, and the history in which every request ends up."""

    def __init__(self, url: str, keys: Mapping[str, HmacKey], history: History) -> None:
        self._history: Final = history
        self._clients: Final = {
            partner_id: GrabClient(
                url, key, connections_max_count=CONNECTIONS_MAX_COUNT, timeout_s=APP_TIMEOUT_S
            )
            for partner_id, key in keys.items()
        }
        self.partner_ids: Final = tuple(keys)
        self.answers: Final[Counter[str]] = Counter()
        """By `<status> <code>`; what could not even be sent counts as `unreachable`."""

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            client.close()

    async def grab(
        self, lane: int, number: Number, *, timeout_s: float | None = None, respond_async: bool = False
    ) -> Answer:
        """Grab once; `timeout_s` is shorter than the client's own."""
        grab = self._clients[number.partner_id].grab(
            number.drop_id, number.person_token, number.out_request_no, respond_async=respond_async
        )
        return await self._record(lane, GRAB, number, grab, timeout_s)

    async def look_up(self, lane: int, number: Number) -> Answer:
        """Ask what became of a number."""
        look_up = self._clients[number.partner_id].look_up(number.drop_id, number.out_request_no)
        return await self._record(lane, LOOK_UP, number, look_up, None)

    async def abandon(self, lane: int, number: Number) -> Answer:
        """Send a grab and hang up."""
        abandon = self._clients[number.partner_id].abandon_grab(
            number.drop_id, number.person_token, number.out_request_no
        )
        return await self._record(lane, GRAB, number, abandon, None)

    async def insist(self, lane: int, number: Number, *, attempts_max_count: int) -> Answer:
        """Ask with one number until it has its answer, by the policy that the client ships.

        That one takes two things for an answer which may be another one a moment later: a clock that is
        off (401), and a refusal that says `retryable`. An app presses again then, and so does this.
        """
        client = self._clients[number.partner_id]
        left = attempts_max_count
        answer = NO_ANSWER

        async def send(request: Request) -> Answer:
            nonlocal left
            left -= 1
            action = LOOK_UP if request.method == b"GET" else GRAB
            told = await self._record(lane, action, number, client.exchange(request), None)
            return Answer(told.status, told.body, min(told.retry_after_s or 0.0, PAUSE_MAX_S))

        while left > 0 and not settled(answer):
            asked_count = attempts_max_count - left
            pause_s = min(PAUSE_FIRST_S * 2.0 ** max(0, asked_count - 1), PAUSE_MAX_S)
            patience = Retries(left, pause_s=pause_s, pause_max_s=PAUSE_MAX_S)
            asking = retrying.grab(
                patience, number.drop_id, number.person_token, number.out_request_no, so_far=answer
            )
            answer = await drive_async(asking, send)
        return answer

    async def _record(
        self, lane: int, action: str, number: Number, asking: Awaitable[Answer], timeout_s: float | None
    ) -> Answer:
        began_ns = time.monotonic_ns()
        try:
            answer = await (asking if timeout_s is None else asyncio.wait_for(asking, timeout_s))
        except TimeoutError:
            answer = NO_ANSWER
        except Unreachable:
            self.answers["unreachable"] += 1  # nothing was sent, so nothing can have happened
            return NO_ANSWER
        ended_ns = time.monotonic_ns()
        refusal = answer.refusal
        body = b""
        if answer.confirmed:
            body = answer.body
        elif refusal.code == PERSON_LIMIT:
            body = bytes(refusal.voucher)
        retryable = refusal.retryable if refusal.code else None
        self._history.calls.append(
            Call(lane, action, *number, began_ns, ended_ns, answer.status, refusal.code, retryable, body)
        )
        self.answers[f"{answer.status} {refusal.code}".rstrip()] += 1
        return answer


def settled(answer: Answer) -> bool:
    """Whether a number has its answer: a voucher, or a refusal that stands."""
    if answer.status in _UNSETTLED or answer.outcome == UNKNOWN_REQUEST:
        return False
    return not answer.refusal.retryable


def gone_for_good(answer: Answer) -> bool:
    """Whether the drop is sold out and nothing can come back."""
    return answer.outcome == SOLD_OUT and not answer.refusal.retryable
