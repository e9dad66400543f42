"""Reads events and writes their documents."""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Final

import asyncpg
import msgspec

from couponsvc import limits
from couponsvc.outbox.partitions import EVENTS_PER_PARTITION_COUNT
from couponsvc.outbox.rendering import (
    SEPARATOR,
    drop_data,
    one_by_one,
    render_event,
    render_vouchers,
    voucher_count,
    vouchers_data,
)
from couponsvc.support import logs
from couponsvc.support.sql import Queries
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.event import Event, EventType, event_id
from couponsvc.values.voucher import Receipt

_queries = Queries("couponsvc.outbox", "events")
_log = logs.get("couponsvc.outbox.reading")
_KNOWN: Final = {kind.value: kind for kind in EventType}


class EventReader:
    """Events as they are sent. Numbers have no gaps, so who has seen one has seen all lower ones.

    Every method raises OSError, TimeoutError or asyncpg.PostgresError where Postgres cannot be asked.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def by_numbers(self, event_nos: Sequence[int]) -> list[Event]:
        """These events in the order of their numbers; left out is what does not exist (any more).

        So is, with an error in the log, an event whose vouchers do not all stand, and an event of a kind
        that only a newer version knows.
        """
        if not event_nos:
            return []
        rows = await self._pool.fetch(_queries["by_numbers"], event_nos)
        return [event for of_one in _grouped(rows) if (event := _event(of_one)) is not None]

    async def page(self, partner_no: int, after: int, limit: int) -> list[Event]:
        """A partner's next events after a number, in order; empty: there is nothing newer yet.

        Ends early, with at least one event, where their vouchers would be more than
        limits.FEED_PAGE_VOUCHERS_MAX_COUNT, and before one that `by_numbers` leaves out.
        """
        most = limits.FEED_PAGE_VOUCHERS_MAX_COUNT
        return await self._in_order(
            await self._pool.fetch(_queries["page_of_partner"], partner_no, after, limit, most)
        )

    async def all_after(self, after: int, limit: int) -> list[Event]:
        """The next events of all partners; ends early as `page` does, so go on until it is empty."""
        most = limits.FEED_PAGE_VOUCHERS_MAX_COUNT
        return await self._in_order(await self._pool.fetch(_queries["page_of_all"], after, limit, most))

    async def latest(self, partner_no: int) -> int:
        """Number of a partner's newest event; 0: it has none."""
        return await self._pool.fetchval(_queries["latest_of_partner"], partner_no) or 0

    async def oldest_kept(self) -> int:
        """Events with lower numbers were dropped; 1: none were."""
        partition_no = await self._pool.fetchval(_queries["oldest_partition"]) or 0
        return max(1, partition_no * EVENTS_PER_PARTITION_COUNT)

    async def _in_order(self, rows: Iterable[asyncpg.Record]) -> list[Event]:
        """Events up to the first that cannot be written: passing over it would lose it for the reader."""
        numbers = [row["event_no"] for row in rows]
        events = await self.by_numbers(numbers)
        for place, (number, event) in enumerate(zip(numbers, events, strict=False)):
            if event.event_no != number:
                return events[:place]
        return events


def _grouped(rows: Iterable[asyncpg.Record]) -> Iterable[list[asyncpg.Record]]:
    return (list(of_one) for _, of_one in groupby(rows, key=itemgetter("event_no")))


def _event(rows: Sequence[asyncpg.Record]) -> Event | None:
    """One event from its rows, which differ in vouchers only; None: this version cannot write it."""
    row = rows[0]
    kind = _KNOWN.get(row["type"])
    if kind is None:
        return None
    if row["voucher_count"] != sum(voucher_count(of_moment["vouchers"]) for of_moment in rows):
        _log.error("vouchers_missing", event_id=event_id(row["event_no"]))
        return None
    if row["drop_no"] is None:
        source, data = f"/v1/subscriptions/{msgspec.json.decode(row['data'])['subscription_id']}", row["data"]
    else:
        source = f"/v1/drops/{row['drop_id']}"
        data = _vouchers(rows) if row["voucher_count"] else drop_data(row["drop_id"], row["data"])
    body = render_event(
        event_no=row["event_no"],
        kind=kind,
        source=source,
        partner_id=row["partner_id"],
        occurred_ms=row["occurred_ms"],
        sequence=row["sequence"],
        data=data,
    )
    return Event(
        row["event_no"],
        row["partner_no"],
        row["drop_no"],
        kind,
        row["voucher_count"],
        row["occurred_ms"],
        body,
    )


def _vouchers(rows: Sequence[asyncpg.Record]) -> str:
    row = rows[0]
    terms = VoucherTerms(row["face_value_fen"], row["min_spend_fen"], row["valid_for_ms"])
    receipt = Receipt(row["drop_no"], row["drop_id"], terms)
    texts = [(of_moment["issued_ms"], of_moment["vouchers"]) for of_moment in rows]
    if any(after["first_seq"] < before["last_seq"] for before, after in pairwise(rows)):
        # A clock that was set back came past the same millisecond again, in a later commit.
        texts = sorted(
            ((issued_ms, one) for issued_ms, joined in texts for one in one_by_one(joined)),
            key=lambda text: int(text[1].partition(SEPARATOR)[0]),
        )
    return vouchers_data(row["drop_id"], [render_vouchers(receipt, *text) for text in texts])
