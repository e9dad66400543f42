"""Fair shares of one process: who asks a lot does not stand in front of who asks little.

While one partner is alone, nothing is held back. As soon as another one is seen, each may have a
window of grabs in work, from the desk to the answer; what is beyond it waits in a line of its own
partner. So a modest partner's grab meets at most a window of each other one in every batch, every
commit and every wave of answers, whatever they send, and the windows keep gate and ledger busy.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from couponsvc import limits

WINDOWS_COUNT: Final = 128
"""Grabs in work of all partners together, shared evenly: a batch that leaves at once."""
WINDOW_MIN_COUNT: Final = 8
SWEEP_S: Final = 0.05
"""How often it is looked whether a window stands still."""
SWEEPS_PER_LOOK: Final = 10
"""After so many sweeps a partner that sent nothing meanwhile no longer counts."""
ALONE: Final = limits.WAITING_MAX_COUNT
"""The window of a partner that is alone: the desk has bounds of its own."""


class Entering(Protocol):
    """A proven grab before the desk."""

    def enter(self) -> None:
        """Go to the desk; neither waits nor raises."""
        ...


class Share:
    """One partner's grabs in one process."""

    __slots__ = ("_shares", "in_work_count", "moved", "seen", "seen_before", "waiting", "window_count")

    def __init__(self, shares: "Shares") -> None:
        self._shares: Final = shares
        self.in_work_count = 0
        self.window_count = ALONE
        self.waiting: Final[deque[Entering]] = deque()
        self.seen = self.seen_before = False
        """Whether it sent something since the last look, and before it."""
        self.moved = False
        """Whether one of its grabs was answered since the last sweep."""

    @property
    def active(self) -> bool:
        """Whether others have to share with it."""
        return self.seen or self.seen_before or bool(self.waiting)

    def admit(self, grab: Entering) -> None:
        """Let a grab enter now, or when there is room for it."""
        if not self.seen:
            self._shares.see(self)
        if self.in_work_count >= self.window_count or self.waiting:
            self.waiting.append(grab)
        else:
            self.in_work_count += 1
            grab.enter()

    def leave(self) -> None:
        """Note that a grab that had entered is answered."""
        self.in_work_count -= 1
        self.moved = True
        if self.waiting:
            self._shares.release_soon()

    def release(self) -> None:
        """Let enter what there is room for."""
        while self.waiting and self.in_work_count < self.window_count:
            self.in_work_count += 1
            self.waiting.popleft().enter()


class Shares(dict[int, Share]):
    """The shares of all partners by their number; made when first asked for."""

    def __init__(self) -> None:
        super().__init__()
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

    def _sweep(self) -> None:
        """Widen a window in which nothing moves, and forget who sends nothing any more.

        Where commits do not come, grants are still decided and answered 202: a window must not
        keep a partner from them, so it doubles as long as nothing is answered.
        """
        self._sweeping = False
        self._sweep_no += 1
        if self._sweep_no % SWEEPS_PER_LOOK == 0:
            for share in self.values():
                share.seen_before, share.seen = share.seen, False
            self._divide()
        for share in self.values():
            if share.waiting and not share.moved:
                share.window_count = min(2 * share.window_count, ALONE)
            share.moved = False
        self._release()
        if any(share.active for share in self.values()):
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
