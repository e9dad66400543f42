"""The line of a limited partner: who comes while its rate is used up waits for the next pulse.

The rate comes free in pulses: a few grabs together cost a batch and a commit as one does, and a partner
that is always at its limit must not stand in front of every commit of others. But a pulse is small,
because whoever comes in the middle of one waits for the whole of it; and nobody overtakes the line, or
each newcomer would be a pulse of its own. A few go on without room, because only the gate can tell a
number that was granted before, whose answer stands, from a new one.

A refusal costs little, but a partner that asks again at once with hundreds of connections makes up
for that by number. So some refusals a second are told at once, which is all that a partner meets who
waits as it is told. Past them a grab stays in the line for a second: its connection asks for nothing
meanwhile. Nothing of this needs a signature to be checked before the grab goes on.
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

PULSE_S: Final = 0.1
"""How often a used-up rate comes free, at most: of a low rate a pulse is a grab or two."""
PULSE_MAX_COUNT: Final = 10
"""Of a high rate more pulses, not larger ones: this many keep the loop for a millisecond, and are what a
neighbour's slowest hundredth meets (decision 0016 has the figures)."""
TICK_S: Final = 0.02
"""How often the line is looked at: how late a refusal is, or the answer to a repeated number."""
TICK_MIN_S: Final = 0.005
"""Of a rate above five hundred a second it is looked at more often, down to this."""
TICK_MAX_COUNT: Final = 64
"""Of a line that is longer when much comes free at once: this many keep the loop for five milliseconds."""
PROBES_PER_TICK: Final = 2
"""Grabs that go on beyond what the gate could allow, because they may be repeated numbers."""
HOLD_S: Final = 1.0
"""How long a grab stays in the line: what `Retry-After` would have said, and well below clients' timeouts."""
REFUSALS_PER_S: Final = 100
"""Told at once, per partner and process: some thousandths of a core."""
REFUSALS_BURST_COUNT: Final = 100
_KEY_ID: Final = re.compile(rb';\s*keyid="([^"]*)"').search


class Waiting(Protocol):
    """A grab that waits for its turn."""

    @property
    def began_s(self) -> float:
        """When it came."""
        ...

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
        self._pulse_count: Final = max(
            1, min(int(rate.per_second * PULSE_S), rate.burst_count // 2, PULSE_MAX_COUNT)
        )
        self._tick_s: Final = min(TICK_S, max(PULSE_MAX_COUNT / rate.per_second, TICK_MIN_S))
        self._opens_s = 0.0
        self._unknown: Final[deque[Waiting]] = deque()
        self._judged: Final[deque[Waiting]] = deque()
        self._refused_until_s = 0.0
        self._ticking = False
        self._letting_go = False
        """Whether what goes on now has waited, so that the line is open to it."""

    def closed(self) -> bool:
        """Whether a newcomer has to wait, as far as is known here: what is free is for those before it."""
        if self._letting_go:
            return False
        now_s = perf_counter()
        waiting_count = len(self._unknown) + len(self._judged)
        return self._used_up(now_s) or self.pace.room_count(now_s) <= waiting_count

    def _used_up(self, now_s: float) -> bool:
        """From the first time on it is, until there is room for a pulse."""
        if now_s < self._opens_s:
            return True
        if self.pace.room_count(now_s) >= 1:
            return False
        self._opens_s = now_s + self.pace.wait_s(now_s, self._pulse_count)
        return True

    def take(self, grab: Waiting) -> None:
        """Let a grab wait that came while the line is closed."""
        self._unknown.append(grab)
        self._tick_later()

    def take_back(self, grab: Waiting) -> None:
        """Take a grab that the gate refused, and that is therefore no repeated number."""
        now_s = perf_counter()
        if self._may_refuse(now_s):
            self._refuse(grab, now_s)
        else:
            self._judged.append(grab)
            self._tick_later()

    def _tick_later(self) -> None:
        if not self._ticking and (self._judged or self._unknown):
            self._ticking = True
            asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        """Let go on whom the rate allows, oldest first; refuse who waited long, and some of the last."""
        self._ticking = False
        now_s = perf_counter()
        room_count = 0 if self._used_up(now_s) else min(self.pace.room_count(now_s), TICK_MAX_COUNT)
        room_count -= self._go_on(self._judged, room_count)
        self._go_on(self._unknown, room_count + PROBES_PER_TICK)
        for waiting in (self._judged, self._unknown):
            while waiting and waiting[0].began_s + HOLD_S <= now_s:
                self._refuse(waiting.popleft(), now_s)
        while self._unknown and self._may_refuse(now_s):
            self._refuse(self._unknown.pop(), now_s)
        self._tick_later()

    def _go_on(self, waiting: deque[Waiting], most_count: int) -> int:
        """How many went. A stranger's, who named the partner's key, fails there and uses nothing."""
        count = min(len(waiting), most_count)
        self._letting_go = True
        try:
            for _ in range(count):
                waiting.popleft().go_on()
        finally:
            self._letting_go = False
        return count

    def _may_refuse(self, now_s: float) -> bool:
        refused_until_s = max(self._refused_until_s, now_s) + 1 / REFUSALS_PER_S
        if refused_until_s > now_s + REFUSALS_BURST_COUNT / REFUSALS_PER_S:
            return False
        self._refused_until_s = refused_until_s
        return True

    def _refuse(self, grab: Waiting, now_s: float) -> None:
        grab.reply(rate_refusal(self.pace.rate, max(1, ceil(self.pace.wait_s(now_s)))))


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
