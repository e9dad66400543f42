"""Small histories of a fault test, made by hand, and the register of those that break a rule."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from couponsvc.values.drop import VoucherTerms
from couponsvc.values.voucher import Issued, Receipt
from tests.faults.harness.checker import Report, judge
from tests.faults.harness.final import (
    FinalDrop,
    FinalEvent,
    FinalState,
    FinalVoucher,
    Heard,
    Stream,
    Untold,
)
from tests.faults.harness.history import GRAB, Call, FaultNote, History, Operation

MS: Final = 1_000_000
WALL_MS: Final = 1_790_000_000_000
"""Unix time at moment 0 of every history here."""
DROP: Final = "lunch"
OPENS_MS: Final = -1_000
CLOSES_MS: Final = 100_000
RECEIPT: Final = Receipt(7, DROP, VoucherTerms(2000, 6000, 3_600_000))


@dataclass
class Scene:
    """A history in milliseconds, and its end. Person `p` asks with the number `n-p`."""

    quantity: int = 2
    limit: int = 1
    status: int = 0
    epoch: int = 1
    pending: int = 0
    issued_more: int = 0
    healed_ms: int = 0
    stream: Stream = field(default_factory=Stream)
    check_exit: int = 0
    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    faults: list[FaultNote] = field(default_factory=list)
    rows: list[FinalVoucher] = field(default_factory=list)
    events: list[FinalEvent] = field(default_factory=list)
    untold: list[Untold] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    followed: list[list[Heard]] = field(default_factory=list)

    def row(
        self,
        person: str,
        issued_ms: int,
        *,
        number: str = "",
        seq: int = 0,
        ordinal: int = 1,
        partner: str = "bank-a",
    ) -> FinalVoucher:
        """A voucher that stands, with its event."""
        number, seq = number or f"n-{person}", seq or len(self.rows) + 1
        issued_ms += WALL_MS
        body = RECEIPT.render(Issued(person, number, seq, issued_ms, f"C{seq}"))
        row = FinalVoucher(DROP, partner, person, ordinal, seq, number, f"C{seq}", issued_ms, body)
        self.rows.append(row)
        place = 1 + sum(event.partner_id == partner for event in self.events)
        event_no = len(self.events) + 1
        self.events.append(FinalEvent(event_no, partner, DROP, place, "voucher.issued", 1, [seq]))
        return row

    def call(
        self,
        person: str,
        began_ms: int,
        ended_ms: int,
        status: int,
        code: str = "",
        *,
        retryable: bool | None = None,
        body: bytes = b"",
        number: str = "",
        action: str = GRAB,
        partner: str = "bank-a",
    ) -> None:
        """A call and its answer."""
        if retryable is None and code:
            retryable = code in {"paused", "not_started"} or status >= 429
        number, began_ns, ended_ns = number or f"n-{person}", began_ms * MS, ended_ms * MS
        answer = (status, code, retryable, body)
        self.calls.append(Call(1, action, partner, DROP, person, number, began_ns, ended_ns, *answer))

    def granted(self, person: str, began_ms: int, ended_ms: int) -> FinalVoucher:
        """A grab that was confirmed in the middle of its call."""
        row = self.row(person, (began_ms + ended_ms) // 2)
        self.call(person, began_ms, ended_ms, 201, body=row.receipt)
        return row

    def sold_out(self, person: str, began_ms: int, ended_ms: int, *, retryable: bool) -> None:
        self.call(person, began_ms, ended_ms, 409, "sold_out", retryable=retryable)

    def operation(
        self, what: str, began_ms: int, ended_ms: int, quantity: int = 0, *, ok: bool | None = True
    ) -> None:
        self.operations.append(Operation(what, DROP, began_ms * MS, ended_ms * MS, quantity, ok))

    def fault(self, began_ms: int, ended_ms: int) -> None:
        self.faults.append(FaultNote("kill", began_ms * MS, ended_ms * MS))

    def lose_the_ledger(self) -> None:
        self.rows.clear()
        self.events.clear()

    def judge(self) -> Report:
        issued = len(self.rows) + self.issued_more
        state = {"available": self.quantity - issued, "pending": self.pending, "issued": issued}
        window = (WALL_MS + OPENS_MS, WALL_MS + CLOSES_MS)
        drop = FinalDrop(
            DROP, 7, self.quantity, self.limit, issued, self.epoch, *window, self.status, state, 1
        )
        history = History(self.calls, self.operations, self.faults, self.healed_ms * MS, float(WALL_MS))
        final = FinalState(
            [drop],
            self.rows,
            self.events,
            self.untold,
            self.stream,
            self.check_exit,
            "",
            self.heard,
            self.followed,
        )
        return judge(history, final)


class Plant(Protocol):
    """Fills a scene with a violation, or with a legal twin that looks alike."""

    def __call__(self, scene: Scene, *, legal: bool) -> None: ...


class Case(NamedTuple):
    """One way to break a rule."""

    rule: str
    about: str
    plant: Plant

    def __str__(self) -> str:
        return re.sub(r"\W+", "-", f"{self.rule} {self.about}")


class Cases:
    """The cases of a module, in its order."""

    def __init__(self) -> None:
        self.all: Final[list[Case]] = []

    def __call__(self, rule: str, about: str) -> Callable[[Plant], None]:
        """Register a case (decorator)."""

        def register(plant: Plant) -> None:
            self.all.append(Case(rule, about, plant))

        return register


def broken_by(case: Case, *, legal: bool) -> set[str]:
    """The rules that the judge finds broken."""
    scene = Scene()
    case.plant(scene, legal=legal)
    return scene.judge().broken_rules
