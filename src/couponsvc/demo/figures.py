"""Times and rates of a rush, from the same records that the promises are judged by. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from couponsvc.demo.records import Press, Rows, Why

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
AFTERWARDS: Final = frozenset({Why.ASKED_AGAIN, Why.LOOKED_UP})


class DropFigures(NamedTuple):
    """One drop of the rush."""

    drop_id: str
    quantity: int
    issued: int
    sold_out_after_s: float | None
    """From the opening to the last voucher; None where stock remained."""


class Figures(NamedTuple):
    """What a rush achieved."""

    drops: tuple[DropFigures, ...]
    confirmed_count: int
    confirmed_per_s: float
    """From the opening to the last voucher of all drops."""
    confirmed_p50_ms: float
    """Of all 201 answers: request sent to answer complete."""
    confirmed_p99_ms: float
    requests_count: int
    requests_per_s: float
    """From the opening to the last answer."""
    rush_s: float
    outcomes: Counter[str]
    whys: Counter[str]


def figures_of(presses: Sequence[Press], rows: Rows) -> Figures:
    """Compute; presses made after the rush, to ask again, count nowhere."""
    rush = [press for press in presses if press.why not in AFTERWARDS]
    opens_ms = min((drop.opens_ms for drop in rows.drops), default=0)
    last_of: dict[int, int] = {}
    for row in rows.vouchers:
        last_of[row.drop_no] = max(last_of.get(row.drop_no, 0), row.issued_ms)
    drops = tuple(
        DropFigures(
            drop.drop_id,
            drop.quantity,
            drop.issued,
            (last_of[drop.drop_no] - drop.opens_ms) / 1000 if drop.issued >= drop.quantity else None,
        )
        for drop in rows.drops
    )
    waits_ms = sorted((p.settled_ns - p.sent_ns) / _NS_PER_MS for p in rush if p.status == 201)  # noqa: PLR2004
    issuing_s = max((max(last_of.values(), default=0) - opens_ms) / 1000, 0.001)
    last_ns = max((press.settled_ns for press in rush), default=0)
    rush_s = max(last_ns / _NS_PER_S - opens_ms / 1000, 0.001)
    return Figures(
        drops=drops,
        confirmed_count=len(rows.vouchers),
        confirmed_per_s=len(rows.vouchers) / issuing_s,
        confirmed_p50_ms=quantile(waits_ms, 0.50),
        confirmed_p99_ms=quantile(waits_ms, 0.99),
        requests_count=len(rush),
        requests_per_s=len(rush) / rush_s,
        rush_s=rush_s,
        outcomes=Counter(press.outcome for press in rush),
        whys=Counter(press.why.value for press in rush),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
