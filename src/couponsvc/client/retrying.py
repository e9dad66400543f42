"""Asking again with the same number: safe, because a number has one answer."""

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from couponsvc.client.answers import NO_ANSWER, PENDING, UNKNOWN_REQUEST, Answer
from couponsvc.client.connection import Unreachable
from couponsvc.client.grabbing import GrabClient

_UNSETTLED: Final = frozenset({0, 202, 429, 503})
"""Lost, pending, slowed down, unavailable: the number has no answer yet."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a caller is. What is a rule (403, 404, 409, 422) is never asked again."""

    attempts_max_count: int
    pause_s: float = 0.1
    """Before the second attempt; doubles each time, with jitter; `Retry-After` lengthens it."""
    pause_max_s: float = 2.0


ONCE: Final = Retries(attempts_max_count=1)
PATIENT: Final = Retries(attempts_max_count=8)
"""About 7 s in all: longer than a rebuild or the restart of one process."""


async def grab_until_answered(
    client: GrabClient,
    drop_id: str,
    person_token: str,
    out_request_no: str,
    *,
    retries: Retries = PATIENT,
    so_far: Answer = NO_ANSWER,
) -> Answer:
    """Ask with one number until it has an answer: again after silence, 202 (by look-up), 429, 503.

    `so_far` is what an earlier attempt was told; with it, the first attempt here pauses too.

    Returns:
        The last answer. It is unsettled (`lost`, `pending`, 503 …) only where patience ran out;
        then a voucher may still exist under this number.
    """
    answer, pause_s = so_far, retries.pause_s
    for attempt in range(retries.attempts_max_count):
        if attempt or so_far is not NO_ANSWER:
            wait_s = max(answer.retry_after_s or 0.0, pause_s)
            await asyncio.sleep(wait_s * (0.5 + random.random()))  # noqa: S311 - jitter is no secret
            pause_s = min(pause_s * 2, retries.pause_max_s)
        try:
            if answer.outcome == PENDING:
                answer = await client.look_up(drop_id, out_request_no)
            else:
                answer = await client.grab(drop_id, person_token, out_request_no)
        except Unreachable:
            answer = NO_ANSWER
        if answer.status not in _UNSETTLED and answer.outcome != UNKNOWN_REQUEST:
            break
    return answer
