"""Does the partner's own ledger equal ours? Decided from its books and Postgres' rows, alone. Pure.

tests/unit/test_demo_hearing.py plants one violation of each kind.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from couponsvc.demo.figures import quantile
from couponsvc.demo.partner_ledger import HeardEvent, HeardVoucher
from couponsvc.demo.promises import Promise, receipts_of
from couponsvc.demo.records import Rows

DEFINED: Final = "couponsvc.drop.defined.v1"
OPENED: Final = "couponsvc.drop.opened.v1"
SOLD_OUT: Final = "couponsvc.drop.sold_out.v1"


class Books(NamedTuple):
    """What a partner wrote down."""

    events: Sequence[HeardEvent]
    vouchers: Sequence[HeardVoucher]


class Hearing(NamedTuple):
    """Figures of what a partner heard."""

    events_count: int
    again_count: int
    """Events that came again after they had been committed: the price of at least once."""
    lag_p50_ms: float
    """From a voucher's commit to its receipt by the partner, the first time."""
    lag_p99_ms: float
    lag_max_ms: float


def verify_books(books: Books, rows: Rows) -> Promise:
    """Judge the partner's books: every voucher once, byte by byte; every change; in order, without gaps."""
    return Promise(
        5,
        "the partner knows it all",
        f"{len(books.vouchers):,} vouchers in {len(books.events):,} events, byte by byte against Postgres",
        (*_vouchers(books, rows), *_events(books, rows)),
    )


def hearing_of(books: Books, rows: Rows) -> Hearing:
    """Compute."""
    issued_ms = {f"vch_{row.drop_no}_{row.seq}": row.issued_ms for row in rows.vouchers}
    lags_ms = sorted(
        float(heard.received_ms - issued_ms[heard.voucher_id])
        for heard in books.vouchers
        if heard.voucher_id in issued_ms
    )
    return Hearing(
        len(books.events),
        sum(event.again_count for event in books.events),
        quantile(lags_ms, 0.5),
        quantile(lags_ms, 0.99),
        lags_ms[-1] if lags_ms else 0.0,
    )


def _vouchers(books: Books, rows: Rows) -> Iterator[str]:
    receipts = {
        f"vch_{row.drop_no}_{row.seq}": text
        for drop in rows.drops
        for row, text in receipts_of(drop, [row for row in rows.vouchers if row.drop_no == drop.drop_no])
    }
    told = Counter(heard.voucher_id for heard in books.vouchers)
    for voucher_id, count in told.items():
        if count > 1:
            yield f"{voucher_id} was told by {count} events"
    for voucher_id in receipts.keys() - told.keys():
        yield f"{voucher_id} stands in Postgres and the partner never heard of it"
    for heard in books.vouchers:
        if heard.voucher_id not in receipts:
            yield f"{heard.voucher_id} was told and is not in Postgres"
        elif heard.receipt != receipts[heard.voucher_id]:
            yield f"{heard.voucher_id}: the voucher told is not the one in Postgres"


def _events(books: Books, rows: Rows) -> Iterator[str]:
    of_drop: dict[str, list[HeardEvent]] = defaultdict(list)
    for event in books.events:
        if event.drop_id is not None:
            of_drop[event.drop_id].append(event)
        if event.other_bytes_count:
            yield f"{event.event_id} came again with other bytes"
    for drop in rows.drops:
        events = of_drop[drop.drop_id]
        if sorted(event.sequence or 0 for event in events) != list(range(1, len(events) + 1)):
            yield f"{drop.drop_id}: events are not numbered 1 to {len(events):,} without gap and repetition"
        kinds = Counter(event.type for event in events)
        if not kinds[DEFINED]:
            yield f"{drop.drop_id}: what it is was not told"
        if kinds[OPENED] != 1:
            yield f"{drop.drop_id}: its opening was told {kinds[OPENED]} times"
        if drop.issued >= drop.quantity and kinds[SOLD_OUT] != 1:
            yield f"{drop.drop_id}: that it is sold out was told {kinds[SOLD_OUT]} times"
