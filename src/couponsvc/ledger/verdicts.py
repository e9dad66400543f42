"""Says what the ledger makes of one grant, from the rows that stand; pure, no input or output.

What Postgres refuses is not an error but a verdict. First match wins:

1. the number stands for this person and drop: COMMITTED, a replay;
2. the number stands for another person or drop: MISMATCH;
3. the person holds what the limit allows: HELD; the ordinal is taken below the limit: STALE;
4. the drop is gone, or its epoch moved on: STALE;
5. the whole quantity is issued: EXCEEDED;
6. otherwise a new voucher: COMMITTED, without a standing row yet.

A replay comes before everything, because whoever was confirmed once must be told so for ever.
"""

from collections.abc import Iterable
from typing import NamedTuple

from couponsvc.values.outcome import Verdict
from couponsvc.values.voucher import StandingVoucher


class Asked(NamedTuple):
    """A grant as the ledger sees it."""

    drop_no: int
    epoch: int
    partner_no: int
    person_token: str
    ordinal: int
    out_request_no: str


class Figures(NamedTuple):
    """A drop's row, locked."""

    epoch: int
    issued: int
    quantity: int
    per_person_limit: int


class Ruling(NamedTuple):
    """A verdict with the row it rests on; COMMITTED without one asks for a new voucher."""

    verdict: Verdict
    standing: StandingVoucher | None


class Standings:
    """The vouchers that stand, by number and by person; grows while a batch is settled."""

    def __init__(self, vouchers: Iterable[StandingVoucher] = ()) -> None:
        self._by_request: dict[tuple[int, str], StandingVoucher] = {}
        self._by_person: dict[tuple[int, int, str], dict[int, StandingVoucher]] = {}
        for voucher in vouchers:
            self.add(voucher)

    def add(self, voucher: StandingVoucher) -> None:
        """Note a voucher; noting it twice changes nothing."""
        self._by_request[voucher.partner_no, voucher.out_request_no] = voucher
        person = (voucher.drop_no, voucher.partner_no, voucher.person_token)
        self._by_person.setdefault(person, {})[voucher.ordinal] = voucher

    def of_request(self, asked: Asked) -> StandingVoucher | None:
        """What stands under the grant's number."""
        return self._by_request.get((asked.partner_no, asked.out_request_no))

    def of_person(self, asked: Asked) -> dict[int, StandingVoucher]:
        """What the grant's person holds of its drop, by ordinal."""
        return self._by_person.get((asked.drop_no, asked.partner_no, asked.person_token), {})


def classify(asked: Asked, figures: Figures | None, standings: Standings) -> Ruling:
    """Rule on one grant.

    Args:
        asked: the grant.
        figures: its drop's row with `issued` as it stands before this grant; None: no such drop.
        standings: every voucher under the grant's number, and of its person in its drop.
    """
    standing = standings.of_request(asked)
    if standing:
        same = standing.drop_no == asked.drop_no and standing.person_token == asked.person_token
        return Ruling(Verdict.COMMITTED if same else Verdict.MISMATCH, standing if same else None)
    held = standings.of_person(asked)
    if figures and len(held) >= figures.per_person_limit:
        return Ruling(Verdict.HELD, held.get(asked.ordinal) or held[min(held)])
    if figures is None or asked.ordinal in held or asked.epoch != figures.epoch:
        return Ruling(Verdict.STALE, None)
    if figures.issued >= figures.quantity:
        return Ruling(Verdict.EXCEEDED, None)
    return Ruling(Verdict.COMMITTED, None)
