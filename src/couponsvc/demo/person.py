"""How people press: early, twice, with lost answers, through a partner's bug, and too late."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from hashlib import blake2s
from typing import Final

from couponsvc.client import Answer, GrabClient, Retries, Unreachable, retrying
from couponsvc.client.answers import LOST, NO_ANSWER, NOT_STARTED, PERSON_LIMIT, SOLD_OUT
from couponsvc.client.driving import drive_async
from couponsvc.client.requests import Request
from couponsvc.demo import plan as shares
from couponsvc.demo.plan import CrowdPlan
from couponsvc.demo.records import Press, Why, press_of

_LOOKS_UP: Final = b"GET"
_PATIENCE: Final = Retries(1 + shares.ATTEMPTS_MAX_COUNT, pause_s=0.05, pause_max_s=1.0)


class _ServiceGone(Exception):
    """Nobody has answered for too long. No `Unreachable`, which the client's policy would ride out."""


class People:
    """The persons of one client process, and what they were told."""

    def __init__(self, client: GrabClient, plan: CrowdPlan) -> None:
        self._client: Final = client
        self._plan: Final = plan
        self._random: Final = random.Random(plan.seed)  # noqa: S311 - people, not secrets
        self._gone: set[str] = set()
        """Drops that somebody here was told are sold out for good."""
        self._reached_s = time.monotonic()
        self.presses: list[Press] = []
        self.outcomes: Counter[str] = Counter()

    async def rush(self) -> None:
        """Let everybody press: some early, most at the opening, some late.

        Raises:
            Unreachable: nobody has answered for `UNREACHABLE_MAX_S`.
        """
        count = self._plan.persons_count
        early = range(int(count * shares.EARLY_SHARE))
        late = range(count - int(count * shares.LATE_SHARE), count)
        before = [asyncio.create_task(self._live(index, Why.EARLY)) for index in early]
        await self._sleep_until_opening()
        await asyncio.gather(self._side_by_side(range(early.stop, late.start)), *before)
        await self._side_by_side(late)

    async def _side_by_side(self, indexes: range) -> None:
        coming = iter(indexes)

        async def lane() -> None:
            for index in coming:
                await self._live(index, Why.FIRST)

        await asyncio.gather(*(lane() for _ in range(self._plan.connections_count)))

    async def _sleep_until_opening(self, early_s: float = 0.0) -> None:
        remaining_s = (self._plan.opens_ns - time.time_ns()) / 1e9 - early_s
        if remaining_s > 0:
            await asyncio.sleep(remaining_s)

    async def _live(self, index: int, why: Why) -> None:
        """Try the denominations in order of preference until one is won or nothing can come back."""
        if why is Why.EARLY:
            await self._sleep_until_opening(self._random.uniform(0, shares.EARLY_S))
        serial = self._plan.first_person + index
        token = f"p-{blake2s(f'{self._plan.run}:{serial}'.encode(), digest_size=8).hexdigest()}"
        (order,) = self._random.choices(shares.PREFERENCES, shares.PREFERENCE_SHARES)
        tries = 0
        for _ in range(shares.ROUNDS_MAX_COUNT):
            may_come_back = False
            for drop_id in self._worth_a_try([self._plan.drop_ids[place] for place in order]):
                tries += 1
                answer = await self._ask(drop_id, token, f"{self._plan.run}-{serial}-{tries}", why)
                if answer.confirmed or answer.outcome == PERSON_LIMIT:
                    return
                may_come_back |= answer.retryable
            if not may_come_back:
                return
            await asyncio.sleep(shares.COME_BACK_S * (0.5 + self._random.random()))

    def _worth_a_try(self, drop_ids: list[str]) -> Iterator[str]:
        """The favourite always; what is known to be gone only by those who do not believe it."""
        for place, drop_id in enumerate(drop_ids):
            if place and drop_id in self._gone and self._random.random() < shares.GREYED_SHARE:
                continue
            yield drop_id

    async def _ask(self, drop_id: str, token: str, number: str, why: Why) -> Answer:
        double = None
        if self._random.random() < shares.DOUBLE_SHARE:
            double = asyncio.create_task(self._settle(drop_id, token, f"{number}b", Why.DOUBLE))
        if drop_id not in self._gone and self._random.random() < shares.DROPPED_SHARE:
            pressing = self._client.abandon_grab(drop_id, token, number)
            await self._press(drop_id, token, number, Why.DROPPED, pressing)
            await asyncio.sleep(self._random.random() * shares.DROPPED_PAUSE_S)
            why = Why.RETRY
        answer = await self._settle(drop_id, token, number, why)
        if answer.confirmed and self._random.random() < shares.MISMATCH_SHARE:
            await self._settle(drop_id, f"{token}-other", number, Why.MISMATCH)
        if double is not None:
            second = await double
            answer = second if second.confirmed else answer
        if answer.outcome == SOLD_OUT and not answer.retryable:
            self._gone.add(drop_id)
        return answer

    async def _settle(self, drop_id: str, token: str, number: str, why: Why) -> Answer:
        """Press until there is an answer, always with the same number, as patiently as the client is."""
        left = _PATIENCE.attempts_max_count
        answer = NO_ANSWER

        async def send(request: Request) -> Answer:
            nonlocal left, why
            left -= 1
            pressed = Why.LOOKED_UP if request.method == _LOOKS_UP else why
            if why is not Why.MISMATCH:
                why = Why.RETRY
            try:
                return await self._press(drop_id, token, number, pressed, self._client.exchange(request))
            except Unreachable as error:
                raise _ServiceGone(str(error)) from error

        patience = _PATIENCE
        while left:
            try:
                answer = await drive_async(retrying.grab(patience, drop_id, token, number), send)
            except _ServiceGone as error:
                raise Unreachable(str(error)) from error
            if answer.outcome != NOT_STARTED:
                break
            await self._sleep_until_opening()
            patience = replace(_PATIENCE, attempts_max_count=left)
        return answer

    async def _press(
        self, drop_id: str, token: str, number: str, why: Why, request: Awaitable[Answer]
    ) -> Answer:
        """One request, written down."""
        try:
            answer = await request
        except Unreachable:
            self.outcomes["unreachable"] += 1
            if time.monotonic() - self._reached_s > shares.UNREACHABLE_MAX_S:
                raise
            return NO_ANSWER
        self._reached_s = time.monotonic()
        self.presses.append(press_of(drop_id, token, number, why, answer))
        self.outcomes["dropped" if answer.outcome == LOST and why is Why.DROPPED else answer.outcome] += 1
        return answer
