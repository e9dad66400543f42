"""After the run the oracle waits until the drops are at rest, and asks again.

First with every number that was answered 202 and nothing else: each must come to an end. Then,
once the ledger was read, with a sample of those confirmed, refused for good, and never answered.
Every answer becomes evidence like those of the run, and is kept in a file beside them.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from time import monotonic, time
from typing import Any, Final, NamedTuple, TypeVar

from couponsvc.client import Answer
from couponsvc.client.answers import PERSON_LIMIT
from loadtests.oracle.deployment import Deployment
from loadtests.oracle.evidence import REBUILDING, Evidence, Figures
from loadtests.oracle.tracks import Seen, Track
from loadtests.records import GRAB, LOOK_UP, ORACLE, Answered

SIDE_BY_SIDE_COUNT: Final = 16
"""Questions in flight: gentle beside a deployment that others may be using by now."""
PAUSE_S: Final = 0.25
SAMPLE_SEED: Final = 20_221_001
"""A sample can be drawn again by whoever doubts it."""

Keep = Callable[[Answered], None]
_Found = TypeVar("_Found")


class Patience(NamedTuple):
    """How long the oracle waits and how much it asks."""

    settle_s: float = 30.0
    """For pending units to be committed and for every 202 to end: over ten times what a waiter waits."""
    confirmed_count: int = 500
    refused_count: int = 250
    unanswered_count: int = 250


class Question(NamedTuple):
    """One number to be asked again."""

    number: str
    track: Track


async def wait_for_rest(deployment: Deployment, evidence: Evidence, settle_s: float) -> bool:
    """Read the figures of every drop until nothing is pending; keeps the last ones read.

    Returns:
        Whether every drop came to rest in time.
    """
    deadline = monotonic() + settle_s
    waiting = list(evidence.drops.values())
    while waiting:
        found = await side_by_side(partial(deployment.figures, drop.drop_id) for drop in waiting)
        for drop, figures in zip(waiting, found, strict=True):
            drop.figures = figures
        waiting = [drop for drop in waiting if not _rests(drop.figures)]
        if waiting and monotonic() > deadline:
            return False
        if waiting:
            await asyncio.sleep(PAUSE_S)
    return True


async def end_the_pending(deployment: Deployment, evidence: Evidence, keep: Keep, patience: Patience) -> None:
    """Ask with every number that was answered 202 and never with a voucher, until it ends."""
    questions = [
        Question(number, track)
        for number, track in evidence.book
        if track.seen & Seen.PENDING and not track.seen & Seen.VOUCHER and track.drop_id in evidence.drops
    ]
    deadline = monotonic() + patience.settle_s

    async def ask(question: Question) -> None:
        while True:
            record = await _ask(deployment, question, GRAB)
            keep(record)
            if record.status not in {0, 202, 429} and record.status < 500:  # noqa: PLR2004 - server errors
                question.track.seen &= ~Seen.OPEN
                return
            question.track.seen |= Seen.OPEN
            if monotonic() > deadline:
                return
            await asyncio.sleep(PAUSE_S)

    await side_by_side(partial(ask, question) for question in questions)


async def ask_again(deployment: Deployment, evidence: Evidence, keep: Keep, patience: Patience) -> None:
    """Ask with a sample of numbers whose answer must not be another one now.

    A refusal that may change is not asked for: the oracle must not take a unit that is left.
    """
    confirmed: list[Question] = []
    refused: list[Question] = []
    unanswered: list[Question] = []
    for number, track in evidence.book:
        drop = evidence.drops.get(track.drop_id)
        if drop is None:
            continue
        if track.seen & Seen.VOUCHER:
            confirmed.append(Question(number, track))
        elif track.seen & Seen.IN_LEDGER:
            unanswered.append(Question(number, track))
        elif track.seen & Seen.FINAL and not drop.restocked:
            refused.append(Question(number, track))
    choose = random.Random(SAMPLE_SEED)  # noqa: S311 - a sample, not a secret
    sample = [
        *_some(choose, confirmed, patience.confirmed_count),
        *_some(choose, refused, patience.refused_count),
        *_some(choose, unanswered, patience.unanswered_count),
    ]
    looked_up = _some(choose, confirmed + unanswered, patience.unanswered_count)

    async def ask(question: Question, action: str) -> None:
        keep(await _ask(deployment, question, action))

    await side_by_side(partial(ask, question, GRAB) for question in sample)
    await side_by_side(partial(ask, question, LOOK_UP) for question in looked_up)


async def side_by_side(calls: Iterable[Callable[[], Coroutine[Any, Any, _Found]]]) -> list[_Found]:
    """Make calls, SIDE_BY_SIDE_COUNT at a time; results in the order of the calls.

    Raises:
        Exception: the first that a call raises; the others are given up.
    """
    waiting = enumerate(calls)
    found: dict[int, _Found] = {}

    async def lane() -> None:
        for place, call in waiting:
            found[place] = await call()

    try:
        async with asyncio.TaskGroup() as lanes:
            for _ in range(SIDE_BY_SIDE_COUNT):
                lanes.create_task(lane())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [found[place] for place in sorted(found)]


def _rests(figures: Figures | None) -> bool:
    return figures is not None and not figures.pending and figures.state != REBUILDING


def _some(choose: random.Random, questions: Sequence[Question], count: int) -> list[Question]:
    return choose.sample(questions, min(len(questions), count))


async def _ask(deployment: Deployment, question: Question, action: str) -> Answered:
    track = question.track
    sent_ms = time() * 1000
    if action == GRAB:
        answer = await deployment.grab(track.drop_id, track.person_token, question.number)
    else:
        answer = await deployment.look_up(track.drop_id, question.number)
    return record_of(answer, question, action, sent_ms)


def record_of(answer: Answer, question: Question, action: str, sent_ms: float) -> Answered:
    """Write an answer to the oracle down."""
    refusal = answer.refusal
    voucher = b""
    if answer.confirmed:
        voucher = answer.body
    elif refusal.code == PERSON_LIMIT:
        voucher = bytes(refusal.voucher)
    return Answered(
        sent_ms=sent_ms,
        answered_ms=time() * 1000,
        intended_ms=sent_ms,
        worker=ORACLE,
        action=action,
        drop_id=question.track.drop_id,
        person_token=question.track.person_token,
        out_request_no=question.number,
        status=answer.status,
        code=refusal.code,
        retryable=refusal.retryable if refusal.code else None,
        voucher=voucher,
    )
