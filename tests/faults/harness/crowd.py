"""Partners under load: many persons, two partners, every bad habit that a network teaches.

One Python process carries some thousands of grabs a second: lanes take one person after the other, and
what a person does is drawn from `_HABITS`. Every number is in the partners' books before it is sent.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

from couponsvc.client import Answer
from tests.faults.harness.asking import Asker, gone_for_good, settled
from tests.faults.harness.numbers import Number, NumberBook
from tests.faults.harness.plan import CONTESTED, LOWERED, RESTOCKED, SEVERAL, DropPlan, Plan

APP_ATTEMPTS_MAX_COUNT: Final = 40
"""About half a minute: longer than most faults; the rest is asked after healing."""
HASTY_S: Final = (0.005, 0.05)
HASTY_ATTEMPTS_COUNT: Final = 5
AWAY_S: Final = (1.0, 6.0)
"""How long somebody who gave up stays away."""
REMEMBERED_MAX_COUNT: Final = 5_000
"""Confirmed numbers that may be asked again long after."""
TWIN_SHARE: Final = 0.05
"""Persons who are known to both partners by the same token, and get the same number from both."""
FINAL_ROLES: Final = (CONTESTED, SEVERAL, RESTOCKED, LOWERED)
"""Drops that the closing demand sells out."""
CLOSING_LANES_COUNT: Final = 24
"""Of each of them."""
CLOSING_PAUSE_S: Final = 0.05
TRIES_COUNT: Final = 4
"""Persons who press for each contested drop when all should be over."""
AGAIN_LANES_COUNT: Final = 128
AGAIN_ATTEMPTS_MAX_COUNT: Final = 60


class Crowd:
    """Everybody who presses in one run. `stop` lets everybody finish what was begun."""

    def __init__(self, asker: Asker, plan: Plan, book: NumberBook) -> None:
        self._asker: Final = asker
        self._plan: Final = plan
        self._book: Final = book
        self._dice: Final = random.Random(f"crowd {plan.seed}")  # noqa: S311
        self._serial = 0
        self._stopping: Final = asyncio.Event()
        self._later: Final[set[asyncio.Task[None]]] = set()
        self._confirmed: Final[list[Number]] = []
        self._shares: Final = [drop.share for drop in plan.drops]

    # --- while faults are planted -------------------------------------------------------------
    async def press(self) -> None:
        """Let persons press until `stop` is called; returns when everybody has been served or given up."""
        await asyncio.gather(*(self._lane(lane) for lane in range(self._plan.crowd.lanes_count)))
        while self._later:
            await asyncio.gather(*self._later)

    def stop(self) -> None:
        """No new person comes."""
        self._stopping.set()

    async def _lane(self, lane: int) -> None:
        habits = [habit for habit, _ in _HABITS]
        weights = [weight for _, weight in _HABITS]
        while not self._stopping.is_set():
            (drop,) = self._dice.choices(self._plan.drops, self._shares)
            (habit,) = self._dice.choices(habits, weights)
            for number in self._come(drop):
                await habit(self, lane, number)
            await self._pause()

    async def _pause(self) -> None:
        if self._plan.crowd.pause_s:
            with contextlib.suppress(TimeoutError):
                pause_s = self._dice.expovariate(1 / self._plan.crowd.pause_s)
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    def _come(self, drop: DropPlan) -> list[Number]:
        """A new person with a number, with several where several vouchers may be held, or a pair of twins."""
        self._serial += 1
        person = f"p-{self._plan.seed}-{self._serial}"
        partners = list(self._asker.partner_ids)
        self._dice.shuffle(partners)
        if self._dice.random() >= TWIN_SHARE:
            del partners[1:]
        wanted_count = self._dice.randint(1, drop.per_person_limit + 1) if drop.per_person_limit > 1 else 1
        return [
            self._number(partner_id, drop.drop_id, person, f"n-{self._plan.seed}-{self._serial}-{place}")
            for place in range(wanted_count)
            for partner_id in partners
        ]

    def _number(self, partner_id: str, drop_id: str, person: str, out_request_no: str) -> Number:
        number = Number(partner_id, drop_id, person, out_request_no)
        self._book.write(number)
        return number

    def _remember(self, number: Number, answer: Answer) -> None:
        if answer.confirmed and len(self._confirmed) < REMEMBERED_MAX_COUNT:
            self._confirmed.append(number)

    # --- habits -------------------------------------------------------------------------------
    async def _app(self, lane: int, number: Number) -> None:
        """Ask with the same number until there is an answer."""
        answer = await self._asker.insist(lane, number, attempts_max_count=self._patience())
        self._remember(number, answer)

    async def _hasty(self, lane: int, number: Number) -> None:
        """Give up after milliseconds and ask again at once, then become reasonable."""
        for _ in range(HASTY_ATTEMPTS_COUNT):
            answer = await self._asker.grab(lane, number, timeout_s=self._dice.uniform(*HASTY_S))
            if settled(answer):
                self._remember(number, answer)
                return
        await self._app(lane, number)

    async def _leave(self, lane: int, number: Number) -> None:
        """Give up, and come back seconds later with the same number."""
        answer = await self._asker.grab(lane, number, timeout_s=self._dice.uniform(*HASTY_S))
        if not settled(answer):
            self._go_on_later(self._come_back(lane, number))

    async def _come_back(self, lane: int, number: Number) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._dice.uniform(*AWAY_S))
        await self._app(lane, number)

    async def _hang_up(self, lane: int, number: Number) -> None:
        """Lose the connection in mid-request; some ask again at once, the others never."""
        await self._asker.abandon(lane, number)
        if self._dice.random() < 0.5:
            await self._app(lane, number)

    async def _second_number(self, lane: int, number: Number) -> None:
        """Press twice: another number for the same person, at the same time or after the first answer."""
        second = self._number(*number[:3], f"{number.out_request_no}-b")
        if self._dice.random() < 0.5:
            await asyncio.gather(self._app(lane, number), self._app(lane, second))
        else:
            await self._asker.grab(lane, number)
            await self._app(lane, second)

    async def _no_waiting(self, lane: int, number: Number) -> None:
        """Ask not to be kept waiting (`Prefer: respond-async`), then look up."""
        answer = await self._asker.grab(lane, number, respond_async=True)
        if not settled(answer):
            await self._app(lane, number)

    async def _look(self, lane: int, number: Number) -> None:
        """Look up before, and after."""
        await self._asker.look_up(lane, number)
        await self._app(lane, number)
        await self._asker.look_up(lane, number)

    async def _long_after(self, lane: int, number: Number) -> None:
        """Repeat a number that was confirmed long ago: the bytes must be the same."""
        if self._confirmed:
            await self._asker.grab(lane, self._dice.choice(self._confirmed))
        await self._app(lane, number)

    def _go_on_later(self, coming: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coming)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def _patience(self) -> int:
        """After the faults nobody waits long: everything is asked again anyhow."""
        return 2 if self._stopping.is_set() else APP_ATTEMPTS_MAX_COUNT

    # --- after healing ------------------------------------------------------------------------
    async def sell_out(self, role: str) -> None:
        """Send fresh persons until a drop is sold out for good; runs until that is so."""
        drop = self._plan.drop(role)
        gone = asyncio.Event()
        await asyncio.gather(*(self._demand(drop, gone, lane) for lane in range(CLOSING_LANES_COUNT)))

    async def _demand(self, drop: DropPlan, gone: asyncio.Event, lane: int) -> None:
        while not gone.is_set():
            for number in self._come(drop)[:1]:
                answer = await self._asker.insist(lane, number, attempts_max_count=3)
                if gone_for_good(answer):
                    gone.set()
                elif not answer.confirmed:
                    await asyncio.sleep(CLOSING_PAUSE_S)

    async def try_once_more(self) -> None:
        """Let a few fresh persons press for what should be sold out: nobody may find what was stranded."""
        await asyncio.gather(
            *(
                self._asker.grab(lane, self._come(self._plan.drop(role))[0])
                for role in FINAL_ROLES
                for lane in range(TRIES_COUNT)
            )
        )

    async def ask_everything_again(self) -> int:
        """Ask once more with every number in the books.

        Returns:
            How many have no answer even now.
        """
        numbers = self._book.read()

        async def lane(place: int) -> int:
            unsettled_count = 0
            for number in numbers:
                answer = await self._asker.insist(place, number, attempts_max_count=AGAIN_ATTEMPTS_MAX_COUNT)
                unsettled_count += not settled(answer)
            return unsettled_count

        return sum(await asyncio.gather(*(lane(place) for place in range(AGAIN_LANES_COUNT))))


_HABITS: Final[tuple[tuple[Callable[[Crowd, int, Number], Awaitable[None]], float], ...]] = (
    (Crowd._app, 0.62),  # noqa: SLF001 - the table belongs to the class
    (Crowd._hasty, 0.1),  # noqa: SLF001
    (Crowd._leave, 0.05),  # noqa: SLF001
    (Crowd._hang_up, 0.05),  # noqa: SLF001
    (Crowd._second_number, 0.05),  # noqa: SLF001
    (Crowd._no_waiting, 0.05),  # noqa: SLF001
    (Crowd._look, 0.03),  # noqa: SLF001
    (Crowd._long_after, 0.05),  # noqa: SLF001
)
