"""Reads events and writes their documents."""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Final, NamedTuple

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
from couponsvc.support import logs, metrics
from couponsvc.support.sql import Queries
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.event import Event, EventType, event_id
from couponsvc.values.voucher import Receipt

_queries = Queries("couponsvc.outbox", "events")
_log = logs.get("couponsvc.outbox.reading")
_KNOWN: Final = {kind.value: kind for kind in EventType}
# Not in outbox/metrics.py: the API reads events too, and must not show a relay's gauges as its own.
_UNWRITABLE: Final = metrics.counter(
    "couponsvc_events_unwritable",
    "Times that an event was met that cannot be told: vouchers_missing, not_renderable, unknown_kind.",
    ("reason",),
)


class Untellable(Exception):
    """The next event is damaged: its vouchers do not all stand, or it cannot be rendered.

    Nothing after it is read before an operator has mended it (`couponsvc check`).
    """

    def __init__(self, event_no: int, reason: str) -> None:
        """Of an event; `reason` goes on after its id, and holds nothing that is in it."""
        super().__init__(f"{event_id(event_no)} {reason}")
        self.event_no = event_no


class Kept(NamedTuple):
    """Which numbers of events there are, of all partners."""

    oldest: int
    """Events with lower numbers were dropped; 1: none were."""
    newest: int
    """No event has a higher number."""


class Standing(NamedTuple):
    """How far events go, at one moment."""

    newest: int
    """Of all partners."""
    latest: int
    """Of the partner; 0: it has none."""


class EventReader:
    """Events as they are sent. Numbers have no gaps, so who has seen one has seen all lower ones.

    Every method raises OSError, TimeoutError or asyncpg.PostgresError where Postgres cannot be asked.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def by_numbers(self, event_nos: Sequence[int]) -> list[Event]:
        """These events in the order of their numbers; left out is what does not exist (any more).

        So is, with an error in the log, an event whose vouchers do not all stand, one that cannot be
        rendered, and an event of a kind that only a newer version knows.
        """
        return [event for _, event in await self._written(event_nos) if isinstance(event, Event)]

    async def page(self, partner_no: int, after: int, limit: int) -> list[Event]:
        """A partner's next events after a number, in order; empty: there is nothing newer yet.

        Ends early, with at least one event, where their vouchers would be more than
        limits.FEED_PAGE_VOUCHERS_MAX_COUNT, and before one that `by_numbers` leaves out. Also empty, rarely:
        what was found was dropped before it was read.

        Raises:
            Untellable: the next one is damaged.
        """
        most = limits.FEED_PAGE_VOUCHERS_MAX_COUNT
        rows = await self._pool.fetch(_queries["page_of_partner"], partner_no, after, limit, most)
        return await self._in_order(rows, refuse_damaged=True)

    async def all_after(self, after: int, limit: int) -> list[Event]:
        """The next events of all partners; ends early as `page` does, so go on until it is empty.

        It is empty, too, where the next one is damaged: brokers wait then, which `behind` shows.
        """
        most = limits.FEED_PAGE_VOUCHERS_MAX_COUNT
        return await self._in_order(await self._pool.fetch(_queries["page_of_all"], after, limit, most))

    async def standing(self, partner_no: int) -> Standing:
        """How far events go, of all partners and of this one."""
        row = await self._pool.fetchrow(_queries["standing_of_partner"], partner_no)
        assert row is not None, "the counter is one row"  # noqa: S101 - narrows the type
        return Standing(row["newest"], row["latest"] or 0)

    async def kept(self) -> Kept:
        """Which numbers there are. What is asked about the past has to be asked before."""
        row = await self._pool.fetchrow(_queries["kept"])
        assert row is not None, "the counter is one row"  # noqa: S101 - narrows the type
        return Kept(max(1, (row["partition_no"] or 0) * EVENTS_PER_PARTITION_COUNT), row["newest"])

    async def oldest_kept(self) -> int:
        """Events with lower numbers were dropped; 1: none were."""
        return (await self.kept()).oldest

    async def _in_order(self, rows: Iterable[asyncpg.Record], *, refuse_damaged: bool = False) -> list[Event]:
        """Events up to the first that cannot be written: passing over it would lose it for the reader."""
        numbers = [row["event_no"] for row in rows]
        events: list[Event] = []
        for expected, (event_no, event) in zip(numbers, await self._written(numbers), strict=False):
            if event_no != expected:  # dropped since its number was read
                break
            if isinstance(event, Untellable) and not events and refuse_damaged:
                raise event
            if not isinstance(event, Event):
                break
            events.append(event)
        return events

    async def _written(self, event_nos: Sequence[int]) -> list[tuple[int, "Event | Untellable | None"]]:
        """What there is of these numbers, in order. None: this version does not know the kind."""
        if not event_nos:
            return []
        rows = await self._pool.fetch(_queries["by_numbers"], event_nos)
        return [(of_one[0]["event_no"], _event_or_damage(of_one)) for of_one in _grouped(rows)]


def in_one_partition(event_no: int, other_no: int) -> bool:
    """Whether two numbers are dropped together: while one is kept, so is everything between the two."""
    return event_no // EVENTS_PER_PARTITION_COUNT == other_no // EVENTS_PER_PARTITION_COUNT


def _grouped(rows: Iterable[asyncpg.Record]) -> Iterable[list[asyncpg.Record]]:
    return (list(of_one) for _, of_one in groupby(rows, key=itemgetter("event_no")))


def _event_or_damage(rows: Sequence[asyncpg.Record]) -> Event | Untellable | None:
    """As `_event`; what that raises is about this event alone, and must not keep others from being told."""
    try:
        return _event(rows)
    except Exception as error:  # noqa: BLE001 - its text may hold what is in the event
        _UNWRITABLE.labels("not_renderable").inc()
        _log.error("event_not_renderable", event_id=event_id(rows[0]["event_no"]), error=type(error).__name__)
        return Untellable(rows[0]["event_no"], "cannot be rendered")


def _event(rows: Sequence[asyncpg.Record]) -> Event | Untellable | None:
    """One event from its rows, which differ in vouchers only; None: this version does not know its kind."""
    row = rows[0]
    kind = _KNOWN.get(row["type"])
    if kind is None:
        _UNWRITABLE.labels("unknown_kind").inc()
        return None
    if row["voucher_count"] != sum(voucher_count(of_moment["vouchers"]) for of_moment in rows):
        _UNWRITABLE.labels("vouchers_missing").inc()
        _log.error("vouchers_missing", event_id=event_id(row["event_no"]))
        return Untellable(row["event_no"], "tells of vouchers that do not all stand in the ledger")
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
