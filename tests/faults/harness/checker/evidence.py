"""History and final state, sorted so that rules can look things up."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final, NamedTuple

import msgspec

from tests.faults.harness.final import FinalDrop, FinalState, FinalVoucher
from tests.faults.harness.history import GRAB, Call, History, Operation

NS_PER_MS: Final = 1_000_000
SETTLED_AFTER_NS: Final = 10_000_000_000
"""Issue 5: within 10 s of healing nothing is stranded; what a fault left behind may last so long."""
CLOCK_TOLERANCE_MS: Final = 250
"""Between Postgres' clock and ours: one machine's clock, slewed and rounded differently."""
NEVER_NS: Final = 2**63
CONFIRMED: Final = (200, 201)
REFUSED: Final = frozenset({400, 401, 403, 404, 409, 413, 422, 429})
"""Statuses that say that nothing was granted by this call."""


Span = tuple[int, int]
"""From one moment to another, in nanoseconds."""


class Key(NamedTuple):
    """What a partner asked for; a number is meant for one person and one drop."""

    partner_id: str
    drop_id: str
    person_token: str
    out_request_no: str


class Voucher(msgspec.Struct, frozen=True):
    """What rules compare of a voucher that was answered."""

    voucher_id: str
    drop_id: str
    seq: int
    code: str
    person_token: str
    out_request_no: str


_decode_voucher: Final = msgspec.json.Decoder(Voucher).decode


class Shown(NamedTuple):
    """An answer that shows a voucher."""

    call: Call
    voucher: Voucher | None
    """None: the body is no voucher."""
    row: FinalVoucher | None
    """What the ledger holds under the partner and the number that the voucher names."""


def key_of(call: Call) -> Key:
    """What the call asked for."""
    return Key(call.partner_id, call.drop_id, call.person_token, call.out_request_no)


def refuses(call: Call) -> bool:
    """Whether the answer says that this grab was granted nothing."""
    return call.action == GRAB and call.status in REFUSED


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time in as few spans as possible, in order."""
    done: list[Span] = []
    for began, ended in sorted(spans):
        if done and began <= done[-1][1]:
            done[-1] = (done[-1][0], max(done[-1][1], ended))
        else:
            done.append((began, ended))
    return done


class Evidence:
    """Everything that is known, by drop, by number and by time."""

    def __init__(self, history: History, final: FinalState) -> None:
        self.history: Final = history
        self.final: Final = final
        self.drops: Final[dict[str, FinalDrop]] = {drop.drop_id: drop for drop in final.drops}
        self.calls: Final[Sequence[Call]] = [call for call in history.calls if call.drop_id in self.drops]
        self.rows: Final[dict[tuple[str, str], FinalVoucher]] = {
            (row.partner_id, row.out_request_no): row for row in final.vouchers
        }
        self.rows_of: Final[dict[str, list[FinalVoucher]]] = defaultdict(list)
        for row in final.vouchers:
            self.rows_of[row.drop_id].append(row)
        self.by_key: Final[dict[Key, list[Call]]] = defaultdict(list)
        for call in sorted(self.calls, key=lambda call: call.began_ns):
            self.by_key[key_of(call)].append(call)
        self.keys_of: Final[dict[str, list[Key]]] = defaultdict(list)
        for key in self.by_key:
            self.keys_of[key.drop_id].append(key)
        self.operations: Final[dict[str, list[Operation]]] = defaultdict(list)
        for operation in sorted(history.operations, key=lambda operation: operation.began_ns):
            self.operations[operation.drop_id].append(operation)
        self.quiet_from_ns: Final = history.healed_ns + SETTLED_AFTER_NS if history.healed_ns else NEVER_NS
        """From here on nothing that a fault left behind may be seen."""
        self._troubled: Final = merged(
            [(note.began_ns, note.ended_ns + SETTLED_AFTER_NS) for note in history.faults]
        )
        self._trouble_began: Final = [began for began, _ in self._troubled]

    def wall_ms(self, ns: int) -> float:
        """Unix time in milliseconds of a moment of the history."""
        return ns / NS_PER_MS + self.history.wall_offset_ms

    def monotonic_ns(self, unix_ms: float) -> int:
        """The moment of the history at a Unix time."""
        return int((unix_ms - self.history.wall_offset_ms) * NS_PER_MS)

    def settled_ns(self, began_ns: int, ended_ns: int | None = None) -> int:
        """When what happened from `began_ns` to `ended_ns` is over for certain.

        That is its own end where no fault was near, else the end of the trouble.
        """
        end = began_ns if ended_ns is None else ended_ns
        index = bisect_right(self._trouble_began, end) - 1
        if index >= 0 and began_ns <= self._troubled[index][1]:
            return max(end, self._troubled[index][1])
        return end

    def troubled(self, began_ns: int, ended_ns: int) -> bool:
        """Whether a fault, or what it may leave behind, was there at some time in between."""
        index = bisect_right(self._trouble_began, ended_ns) - 1
        return index >= 0 and began_ns <= self._troubled[index][1]

    def row_of(self, key: Key) -> FinalVoucher | None:
        """The ledger's row of this number, if it is for this drop and person."""
        row = self.rows.get((key.partner_id, key.out_request_no))
        return row if row and (row.drop_id, row.person_token) == (key.drop_id, key.person_token) else None

    @cached_property
    def shown(self) -> Sequence[Shown]:
        """Every answer with a voucher in it, in the order of their ends."""
        return sorted(self._shown(), key=lambda shown: shown.call.ended_ns)

    def _shown(self) -> Iterator[Shown]:
        for call in self.calls:
            if call.status in CONFIRMED or call.body:
                row = self.rows.get((call.partner_id, call.out_request_no))
                if row is not None and row.receipt == call.body:  # nearly always, and cheap
                    yield Shown(call, _voucher_of(row, self.drops[row.drop_id]), row)
                    continue
                voucher = _read(call.body)
                number = voucher.out_request_no if voucher else ""
                yield Shown(call, voucher, self.rows.get((call.partner_id, number)))


def _voucher_of(row: FinalVoucher, drop: FinalDrop) -> Voucher:
    name = f"vch_{drop.drop_no}_{row.seq}"
    return Voucher(name, row.drop_id, row.seq, row.code, row.person_token, row.out_request_no)


def _read(body: bytes) -> Voucher | None:
    try:
        return _decode_voucher(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
