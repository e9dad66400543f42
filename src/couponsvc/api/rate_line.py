"""The line of a limited partner: who comes while its rate is used up is refused, cheaply, or waits.

A refusal costs little, but a partner that asks again at once with hundreds of connections makes up
for that by number. So some refusals a second are told at once, which is all that a partner meets who
waits as it is told. Past them a grab is held: it gets its turn where the rate allows it soon, else
its refusal a second later, and its connection asks for nothing meanwhile.

The rate comes free in pulses: a partner that is always at its limit then works for a millisecond in
twenty and leaves the rest to others, instead of being in the way of every single grab of theirs.
"""

import asyncio
import re
from collections import deque
from collections.abc import Mapping
from math import ceil
from time import perf_counter
from typing import Final, Protocol

from couponsvc.api.grab_answers import Reply, rate_refusal
from couponsvc.api.principal import Principal
from couponsvc.batch.pace import Pace
from couponsvc.values.rate import Rate

PULSE_S: Final = 0.02
"""How often a used-up rate comes free, at most: a tenth of what people notice."""
HOLD_S: Final = 1.0
"""How long a grab is held: what `Retry-After` would have said, and well below clients' timeouts."""
REFUSALS_PER_S: Final = 100
"""Told at once, per partner and process: some thousandths of a core."""
REFUSALS_BURST_COUNT: Final = 100
_KEY_ID: Final = re.compile(rb';\s*keyid="([^"]*)"').search


class Waiting(Protocol):
    """A grab that waits for its turn."""

    held_since_s: float
    """When it was held first; 0 before."""

    def go_on(self) -> None:
        """It is its turn; neither waits nor raises."""
        ...

    def reply(self, reply: Reply) -> None:
        """It is refused; neither waits nor raises."""
        ...


class RateLine:
    """A limited partner's line in one process."""

    def __init__(self, partner_no: int, rate: Rate) -> None:
        self.pace: Final = Pace(partner_no, rate)
        self._pulse_count: Final = max(1, min(int(rate.per_second * PULSE_S), rate.burst_count // 2))
        self._opens_s = 0.0
        self._held: Final[deque[Waiting]] = deque()
        self._refused_until_s = 0.0
        self._ticking = False

    def closed(self) -> bool:
        """Whether the rate is used up, as far as this process knows."""
        now_s = perf_counter()
        if now_s < self._opens_s:
            return True
        if self.pace.room_count(now_s) >= 1:
            return False
        self._opens_s = now_s + self.pace.wait_s(now_s, self._pulse_count)
        return True

    def turn_away(self, grab: Waiting) -> None:
        """Refuse a grab now, or hold it where refusals were many."""
        now_s = perf_counter()
        refused_until_s = max(self._refused_until_s, now_s) + 1 / REFUSALS_PER_S
        if not grab.held_since_s:
            if refused_until_s <= now_s + REFUSALS_BURST_COUNT / REFUSALS_PER_S:
                self._refused_until_s = refused_until_s
                grab.reply(self._refusal(now_s))
                return
            grab.held_since_s = now_s
        self._held.append(grab)
        self._tick_soon()

    def _refusal(self, now_s: float) -> Reply:
        return rate_refusal(self.pace.rate, max(1, ceil(self.pace.wait_s(now_s))))

    def _tick_soon(self) -> None:
        if self._held and not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(PULSE_S, self._tick)

    def _tick(self) -> None:
        """Refuse who waited long enough; then those go on whom the rate allows, longest waiting first."""
        self._ticking = False
        held, now_s = self._held, perf_counter()
        while held and held[0].held_since_s + HOLD_S <= now_s:
            held.popleft().reply(self._refusal(now_s))
        if not self.closed():
            for _ in range(min(len(held), self.pace.room_count(now_s))):
                held.popleft().go_on()  # a stranger's, who named the partner's key, fails here
        self._tick_soon()


class RateLines:
    """The lines of all limited partners."""

    def __init__(self) -> None:
        self._lines: Final[dict[int, RateLine]] = {}

    def of(self, principal: Principal) -> RateLine | None:
        """A partner's line; None where it is not limited."""
        rate, partner_no = principal.rate, principal.partner_no
        if rate is None or partner_no is None:
            return None
        line = self._lines.get(partner_no)
        if line is None or line.pace.rate != rate:
            line = self._lines[partner_no] = RateLine(partner_no, rate)
        return line

    def named(self, limited: Mapping[bytes, Principal], fields: Mapping[bytes, bytes]) -> RateLine | None:
        """The line of the partner whose key a signature names, which nobody has proven yet.

        All that a stranger can have of it is a refusal while the partner itself is refused.
        """
        found = _KEY_ID(fields.get(b"signature-input", b""))
        principal = None if found is None else limited.get(found[1])
        return None if principal is None else self.of(principal)
