"""Drop definitions as an API process knows them: in memory, fresh by message and by age.

A stale definition can do no harm: its epoch fences it at the gate, and windows, stock and
limits are judged by Redis, never from here.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Final

import structlog

from couponsvc import limits
from couponsvc.ledger.drops import DropMark
from couponsvc.support.ending import end_tasks
from couponsvc.support.subscription import listen
from couponsvc.values import keys
from couponsvc.values.drop import Drop
from couponsvc.values.voucher import Receipt

log = structlog.get_logger("catalog")

LoadDrops = Callable[[Sequence[str]], Awaitable[Sequence[Drop]]]
"""Reads drops by drop_id from Postgres."""
MarkDrops = Callable[[], Awaitable[Mapping[str, DropMark]]]
"""Reads the marks of all drops from Postgres, by drop_id."""

LOAD_MAX_COUNT: Final = 200
"""Definitions read at once: about 2 ms, for which every request has to wait."""
TURNS_COUNT: Final = 12
"""Readings by age after which each definition was read, moved or not: a minute."""

UNKNOWN_MAX_COUNT: Final = 10_000
"""Names remembered as unknown, so that guessing costs no query each; oldest forgotten first."""
UNKNOWN_FOR_S: Final = 0.5
"""How long a name stays unknown: a drop made a moment ago must be found soon."""


class Listing:
    """One drop with what answering needs, made once per definition."""

    __slots__ = ("drop", "mark", "receipt", "region_prefix")

    def __init__(self, drop: Drop) -> None:
        self.drop: Final = drop
        self.mark: Final = DropMark.of(drop)
        self.receipt: Final = Receipt(drop.drop_no, drop.drop_id, drop.terms)
        self.region_prefix: Final = region_prefix(drop.region)


def region_prefix(region: str) -> str:
    """What a person's region code must begin with to lie in `region` (GB/T 2260: pairs of digits).

    `370000` (a province) → `37`; `370200` (a city) → `3702`; empty → anything.
    """
    while region.endswith("00"):
        region = region[:-2]
    return region


class DropCatalog:
    """The drops of a shard by drop_id."""

    def __init__(self, load: LoadDrops, mark: MarkDrops, shard: int) -> None:
        self._load: Final = load
        self._mark: Final = mark
        self._shard: Final = shard
        self._listings: dict[str, Listing] = {}
        self._name_of: dict[int, str] = {}
        self._unknown: dict[str, float] = {}
        self._loading: dict[str, asyncio.Future[None]] = {}
        self._named: set[str] = set()
        """Drops that a control message named and that are not read anew yet."""
        self._heard: Final = asyncio.Event()
        self._turn = 0

    def get(self, drop_id: str) -> Listing | None:
        """What is known without waiting."""
        return self._listings.get(drop_id)

    async def find(self, drop_id: str) -> Listing | None:
        """The drop's listing, read from Postgres where it is not known yet.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
        """
        listing = self._listings.get(drop_id)
        if listing is None and self._unknown.get(drop_id, 0.0) <= monotonic():
            listing = await self.refresh(drop_id)
        return listing

    async def refresh(self, drop_id: str) -> Listing | None:
        """Read one drop anew; callers at the same moment share the query.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
        """
        running = self._loading.get(drop_id)
        if running is None:
            running = asyncio.ensure_future(self._reload([drop_id]))
            self._loading[drop_id] = running
            running.add_done_callback(lambda _: self._loading.pop(drop_id, None))
        await asyncio.shield(running)
        return self._listings.get(drop_id)

    async def _reload(self, drop_ids: Sequence[str]) -> None:
        for start in range(0, len(drop_ids), LOAD_MAX_COUNT):
            await self._reload_some(drop_ids[start : start + LOAD_MAX_COUNT])

    async def _reload_some(self, drop_ids: Sequence[str]) -> None:
        drops = await self._load(drop_ids)
        for drop in drops:
            self._keep(drop)
        for drop_id in set(drop_ids) - {drop.drop_id for drop in drops}:
            self._unknown[drop_id] = monotonic() + UNKNOWN_FOR_S
            if len(self._unknown) > UNKNOWN_MAX_COUNT:
                self._unknown.pop(next(iter(self._unknown)))

    async def refresh_moved(self) -> None:
        """Read every drop whose mark is another than the one known, and those whose turn it is.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
        """
        marks = await self._mark()
        self._turn = (self._turn + 1) % TURNS_COUNT
        await self._reload([drop_id for drop_id, mark in marks.items() if self._wants(drop_id, mark)])

    def _wants(self, drop_id: str, mark: DropMark) -> bool:
        listing = self._listings.get(drop_id)
        if listing is None or listing.mark != mark:
            return True
        return listing.drop.drop_no % TURNS_COUNT == self._turn

    def _keep(self, drop: Drop) -> None:
        known = self._listings.get(drop.drop_id)
        if known is not None and (known.drop.epoch, known.drop.version) > (drop.epoch, drop.version):
            return  # an answer that was overtaken by a later read
        if known is None or known.drop != drop:
            self._listings[drop.drop_id] = Listing(drop)
            self._name_of[drop.drop_no] = drop.drop_id
            self._unknown.pop(drop.drop_id, None)

    async def run(self, redis_url: str, stop: asyncio.Event) -> None:
        """Keep every known drop fresh until cancelled: by control message, and all of them by age."""
        tasks = [
            asyncio.create_task(self._refresh_by_age(stop), name="catalog-by-age"),
            asyncio.create_task(self._refresh_named(), name="catalog-by-message"),
        ]
        try:
            await listen(redis_url, keys.control_channel(self._shard), self._hear)
        finally:
            await end_tasks(*tasks)

    def _hear(self, data: bytes) -> None:
        drop_id = self._name_of.get(int(data)) if data.isdigit() else None
        if drop_id is not None:
            self._named.add(drop_id)
            self._heard.set()

    async def _refresh_named(self) -> None:
        """Read what control messages named; those that come during a reading share the next one."""
        while True:
            await self._heard.wait()
            self._heard.clear()
            drop_ids, self._named = list(self._named), set()
            try:
                await self._reload(drop_ids)
            except Exception as error:  # noqa: BLE001 - the next reading by age makes up for it
                log.warning("definitions not read", drop_count=len(drop_ids), error=type(error).__name__)

    async def _refresh_by_age(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self.refresh_moved()
            except Exception as error:  # noqa: BLE001 - old definitions are fenced, never wrong
                log.warning("definitions not refreshed", error=type(error).__name__)
            await _pause(stop, limits.DEFINITION_REFRESH_MS)


async def _pause(stop: asyncio.Event, pause_ms: int) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), pause_ms / 1000)
