"""Giving way: a partner that presses takes turns, so that a modest one mostly finds the way free.

A grab in work costs every other one a piece of the loop, of the gate and of the commit before its own.
A partner that asks without end keeps all three busy all the time, however small its window is. While
somebody modest is there its grabs therefore enter in turns: some at once, which cost a batch and a
commit as one does, and then a rest of several times what the turn took.

What others gain must not cost too much: nobody is held for longer than the operator allows
(`COUPONSVC_NEIGHBOUR_HOLD_MS`). When a line waits for longer, turns become larger and rests shorter,
until its partner gives way to nobody: the more connections it has, the less it is slowed down.
"""

import asyncio
from time import perf_counter
from typing import Final, NamedTuple, Protocol


class Rhythm(NamedTuple):
    """How turns follow each other."""

    turn_count: int
    """Grabs that enter at once."""
    rest_ratio: float
    """How much longer than the turn the rest is."""


RHYTHMS: Final = (Rhythm(10, 4.0), Rhythm(20, 2.0), Rhythm(40, 1.0))
"""From the most considerate on; each lets two to three times as many through as the one before. Ten keep
the loop for a millisecond, and with four turns' rest a neighbour meets one of five (decision 0016)."""
REST_MAX_S: Final = 0.02
"""Where turns take long because something else is slow, rests help nobody."""


class Taker(Protocol):
    """Whose turns they are."""

    def take_turn(self) -> bool:
        """Let enter what a turn has room for; whether anything is in work now."""
        ...


class Turns:
    """The turns of one partner in one process."""

    __slots__ = ("_began_s", "_running", "_stopped", "_taker", "rhythm")

    def __init__(self, taker: Taker, rhythm: Rhythm) -> None:
        self._taker: Final = taker
        self._began_s = 0.0
        self._running = False
        """A turn is in work, or rests."""
        self._stopped = False
        self.rhythm = rhythm

    def begin(self) -> None:
        """Take the next turn, unless one is in work or rests."""
        if not self._running and not self._stopped:
            self._began_s = perf_counter()
            self._running = True
            self._running = self._taker.take_turn()

    def end(self) -> None:
        """Rest: the last grab of a turn is answered."""
        rest_s = min(REST_MAX_S, (perf_counter() - self._began_s) * self.rhythm.rest_ratio)
        asyncio.get_running_loop().call_later(rest_s, self._rested)

    def _rested(self) -> None:
        self._running = False
        self.begin()

    def stop(self) -> None:
        """Take no further turn."""
        self._stopped = True
