"""Fair shares of one process: who asks a lot does not stand in front of who asks little.

While one partner is alone, nothing is held back. As soon as another one is seen, each may have a
window of grabs in work, from the desk to the answer; what is beyond it waits in a line of its own
partner. So a modest partner's grab meets at most a window of each other one in every batch, every
commit and every wave of answers, whatever they send, and the windows keep gate and ledger busy.

Who fills its window presses. While all do, as in a rush, that is all. While somebody does not, those
who press give way (`api.turns`), as far as their own lines allow it.
"""

import asyncio
from collections import deque
from time import perf_counter
from typing import Final, Protocol

from couponsvc import limits
from couponsvc.api.turns import RHYTHMS, Turns

WINDOWS_COUNT: Final = 128
"""Grabs in work of all partners together, shared evenly: a batch that leaves at once."""
WINDOW_MIN_COUNT: Final = 8
SWEEP_S: Final = 0.05
"""How often it is looked whether a window stands still, and who presses."""
SWEEPS_PER_LOOK: Final = 10
"""After so many sweeps a partner that sent nothing meanwhile no longer counts."""
EASE_RATIO: Final = 0.25
"""A line that waits for less than this part of what it may is given smaller turns: each step about halves
what goes through, so that this does not swing."""
ALONE: Final = limits.WAITING_MAX_COUNT
"""The window of a partner that is alone: the desk has bounds of its own."""


class Entering(Protocol):
    """A proven grab before the desk."""

    @property
    def began_s(self) -> float:
        """When it came, by `perf_counter`."""
        ...

    def enter(self) -> None:
        """Go to the desk; neither waits nor raises."""
        ...


class Share:
    """One partner's grabs in one process."""

    __slots__ = (
        "_haste",
        "_shares",
        "_turns",
        "in_work_count",
        "moved",
        "pressed",
        "pressed_before",
        "seen",
        "seen_before",
        "waiting",
        "window_count",
    )

    def __init__(self, shares: "Shares") -> None:
        self._shares: Final = shares
        self._turns: Turns | None = None
        """While it gives way."""
        self._haste = 0
        """Which of `RHYTHMS` its turns have; past the last one its line waits too long for any."""
        self.in_work_count = 0
        self.window_count = ALONE
        self.waiting: Final[deque[Entering]] = deque()
        self.seen = self.seen_before = False
        """Whether it sent something since the last look, and before it."""
        self.pressed = self.pressed_before = False
        """Whether it had to wait since the last look, and before it."""
        self.moved = False
        """Whether one of its grabs was answered since the last sweep."""

    @property
    def active(self) -> bool:
        """Whether others have to share with it."""
        return self.seen or self.seen_before or bool(self.waiting)

    @property
    def presses(self) -> bool:
        """Whether it asks for more than its window lately."""
        return self.pressed or self.pressed_before

    def admit(self, grab: Entering) -> None:
        """Let a grab enter now, or when there is room for it."""
        if not self.seen:
            self._shares.see(self)
        if self._turns is not None:
            self.waiting.append(grab)
            self._turns.begin()
        elif self.in_work_count >= self.window_count or self.waiting:
            self.waiting.append(grab)
        else:
            self.in_work_count += 1
            grab.enter()

    def leave(self) -> None:
        """Note that a grab that had entered is answered."""
        self.in_work_count -= 1
        self.moved = True
        if self._turns is not None:
            if not self.in_work_count:
                self._turns.end()
        elif self.waiting:
            self._shares.release_soon()

    def release(self) -> None:
        """Let enter what there is room for, unless it takes turns."""
        if self._turns is None:
            self._let_enter(self.window_count)

    def take_turn(self) -> bool:
        """Let enter what a turn has room for; whether anything is in work now."""
        if self._turns is not None:
            self._let_enter(self._turns.rhythm.turn_count)
        return bool(self.in_work_count)

    def _let_enter(self, most_count: int) -> None:
        while self.waiting and self.in_work_count < most_count:
            self.in_work_count += 1
            self.waiting.popleft().enter()

    def give_way(self) -> None:
        """Take turns from now on, as considerate as its line allows."""
        if self._haste >= len(RHYTHMS):
            self.give_way_no_more()
        elif self._turns is None:
            self._turns = Turns(self, RHYTHMS[self._haste])
            self._turns.begin()
        else:
            self._turns.rhythm = RHYTHMS[self._haste]

    def give_way_no_more(self) -> None:
        """Have a window again."""
        if self._turns is not None:
            self._turns.stop()
            self._turns = None

    def hurry_or_ease(self, now_s: float, held_max_s: float, *, may_ease: bool) -> None:
        """Larger turns where its grabs wait too long or nothing is answered; smaller ones later on."""
        held_s = now_s - self.waiting[0].began_s if self.waiting else 0.0
        if held_s > held_max_s or (self.waiting and not self.moved):
            self._haste = min(self._haste + 1, len(RHYTHMS))
        elif may_ease and held_s < held_max_s * EASE_RATIO:
            self._haste = max(self._haste - 1, 0)


class Shares(dict[int, Share]):
    """The shares of all partners by their number; made when first asked for.

    Args:
        hold_ms: how long a grab of a partner that presses may be held for a modest one's sake; 0: never.
    """

    def __init__(self, hold_ms: int = limits.NEIGHBOUR_HOLD_MS) -> None:
        super().__init__()
        self._held_max_s: Final = hold_ms / 1_000
        self._releasing = False
        self._sweeping = False
        self._sweep_no = 0

    def __missing__(self, partner_no: int) -> Share:
        share = self[partner_no] = Share(self)
        return share

    def see(self, share: Share) -> None:
        """Note that a partner sends: from now on there is one more."""
        share.seen = True
        if not share.seen_before:
            self._divide()
            self._settle_who_gives_way()
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def release_soon(self) -> None:
        """Release what waits as soon as the loop has done what it is doing: never within an answer."""
        if not self._releasing:
            self._releasing = True
            asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        self._releasing = False
        for share in self.values():
            if share.waiting:
                share.release()

    def _divide(self) -> None:
        active = [share for share in self.values() if share.active]
        window_count = ALONE if len(active) <= 1 else max(WINDOW_MIN_COUNT, WINDOWS_COUNT // len(active))
        for share in self.values():
            share.window_count = window_count
            if share.in_work_count >= window_count:
                share.pressed = True

    def _sweep(self) -> None:
        """Widen a window in which nothing moves, see who has to give way, and forget who sends no more.

        Where commits do not come, grants are still decided and answered 202: a window must not
        keep a partner from them, so it doubles as long as nothing is answered.
        """
        self._sweeping = False
        self._sweep_no += 1
        looks = self._sweep_no % SWEEPS_PER_LOOK == 0
        if looks:
            for share in self.values():
                share.seen_before, share.seen = share.seen, False
                share.pressed_before, share.pressed = share.pressed, False
            self._divide()
        now_s = perf_counter()
        for share in self.values():
            if share.waiting:
                share.pressed = True
                if not share.moved:
                    share.window_count = min(2 * share.window_count, ALONE)
            share.hurry_or_ease(now_s, self._held_max_s, may_ease=looks)
            share.moved = False
        self._settle_who_gives_way()
        self._release()
        if any(share.active for share in self.values()):
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _settle_who_gives_way(self) -> None:
        modest_is_here = any(share.active and not share.presses for share in self.values())
        for share in self.values():
            if modest_is_here and share.presses and self._held_max_s:
                share.give_way()
            else:
                share.give_way_no_more()
