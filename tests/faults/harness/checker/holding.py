"""How many units of a drop could have been held at a time, on any reading of the history."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from tests.faults.harness.checker.evidence import (
    NEVER_NS,
    SETTLED_AFTER_NS,
    Evidence,
    Key,
    Span,
    merged,
    refuses,
)
from tests.faults.harness.history import GRAB, Call


class Holding:
    """An upper bound, over time, of the units of one drop that grants and vouchers held.

    Every unit that is held has a number under which it was asked for, and that number was sent
    before. So the numbers that may hold one are counted:

    - a number that stands in the ledger, from its first call on, for ever;
    - a number that does not, from a call whose effect is unknown (no answer, 202, 5xx, or a number
      used otherwise, whose unit goes back some time after the answer) until everything is settled;
    - a number that was refused, only where a fault was near, because a grab may then be granted by
      a server that is left behind, lose that grant, and be decided again within one call.
    """

    def __init__(self, evidence: Evidence, drop_id: str) -> None:
        self._spans: Final = _spans(evidence, drop_id)
        steps: dict[int, int] = defaultdict(int)
        for spans in self._spans.values():
            for began, ended in spans:
                steps[began] += 1
                steps[ended] -= 1
        self._moments: Final = sorted(steps)
        self._maxima: Final = [list(accumulate(steps[moment] for moment in self._moments))]
        """Level k: the highest count of 2^k moments from each one on."""
        width = 1
        while 2 * width <= len(self._moments):
            below = self._maxima[-1]
            self._maxima.append(list(map(max, below, below[width:])))
            width *= 2

    def most(self, began_ns: int, ended_ns: int, asker: Key) -> int:
        """The most that others than `asker` could have held at some time in between."""
        first = max(0, bisect_right(self._moments, began_ns) - 1)
        last = bisect_right(self._moments, ended_ns)
        if last <= first:
            return 0
        level = (last - first).bit_length() - 1
        row = self._maxima[level]
        most = max(row[first], row[last - (1 << level)])
        # Whoever is told that nothing is left holds nothing under that number where that is said.
        own = any(began <= began_ns and ended_ns <= ended for began, ended in self._spans.get(asker, ()))
        return most - own


def _spans(evidence: Evidence, drop_id: str) -> dict[Key, Sequence[Span]]:
    spans: dict[Key, Sequence[Span]] = {}
    for key in evidence.keys_of[drop_id]:
        grabs = [call for call in evidence.by_key[key] if call.action == GRAB]
        if evidence.row_of(key) is not None:
            began = grabs[0].began_ns if grabs else -NEVER_NS
            spans[key] = [(began, NEVER_NS)]
        elif held := [span for call in grabs if (span := _span(evidence, call))]:
            spans[key] = merged(held)  # one number holds one unit, however often it was asked for
    for row in evidence.rows_of[drop_id]:  # what nobody of this history asked for was there before
        key = Key(row.partner_id, drop_id, row.person_token, row.out_request_no)
        spans.setdefault(key, [(-NEVER_NS, NEVER_NS)])
    return spans


def _span(evidence: Evidence, call: Call) -> Span | None:
    if refuses(call) and call.code != "request_mismatch":
        if not evidence.troubled(call.began_ns, call.ended_ns):
            return None
        return call.began_ns, evidence.settled_ns(call.began_ns, call.ended_ns)
    if evidence.quiet_from_ns == NEVER_NS:
        return call.began_ns, NEVER_NS
    return call.began_ns, max(evidence.quiet_from_ns, call.ended_ns + SETTLED_AFTER_NS)
