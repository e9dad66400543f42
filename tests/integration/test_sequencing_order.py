"""Order under concurrency: commits become visible out of order, two sequencers work, readers page."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.support.postgres import open_pool
from couponsvc.values.drop import Drop
from couponsvc.values.event import Event, EventType
from tests.integration.outbox_scene import NOW, admit, commit, documents, prepare, tell
from tests.integration.scene import make_drop

Pool = asyncpg.Pool
WRITERS_COUNT = 8
PAGE_COUNT = 3


@dataclass
class Traffic:
    """Writers, sequencers and readers of one ledger."""

    pool: "Pool[asyncpg.Record]"
    drops: Sequence[Drop]
    partners: Sequence[int]
    written: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, writers: "Pool[asyncpg.Record]", n: int) -> None:
        """Hold each commit back for a while: what has a lower number in the outbox is seen later."""
        for turn in range(6):
            async with writers.acquire() as connection, connection.transaction():
                drop = self.drops[(n + turn) % len(self.drops)]
                owners = [self.partners[(n + place) % 3] for place in range(1 + (n * turn) % 5)]
                await commit(connection, drop, owners)
                if turn == n % 6:
                    await tell(connection, drop, "drop.paused")
                await asyncio.sleep(0.001 * ((n * 7 + turn * 3) % 9))

    async def sequence(self) -> None:
        sequencer = Sequencer(self.pool)
        while await self.goes_on():
            await sequencer.run_once(NOW)
            await asyncio.sleep(0.002)

    async def read(self, partner_no: int | None) -> list[Event]:
        """Page on and on; None: over all partners, as a broker is fed."""
        reader, found = EventReader(self.pool), list[Event]()
        while True:
            more = await self.goes_on()
            after = found[-1].event_no if found else 0
            if partner_no is None:
                page = await reader.all_after(after, PAGE_COUNT)
            else:
                page = await reader.page(partner_no, after, PAGE_COUNT)
            found += page
            if not more and not page:
                return found

    async def goes_on(self) -> bool:
        return not self.written.is_set() or bool(await self.pool.fetchval("SELECT count(*) FROM outbox"))


async def test_readers_see_every_number_once_in_order_while_commits_become_visible_out_of_order(
    pool: "Pool[asyncpg.Record]", database: str
) -> None:
    await prepare(pool)
    drops = [await make_drop(pool, f"drop-{n}", quantity=1_000) for n in range(4)]
    for drop in drops:
        partners = [1, *(await admit(pool, drop, "bank-b", "bank-c"))]
    traffic = Traffic(pool, drops, partners)
    writers = await open_pool(database, max_size=WRITERS_COUNT)
    readers = [asyncio.create_task(traffic.read(reader)) for reader in (None, *partners)]
    sequencers = [asyncio.create_task(traffic.sequence()) for _ in range(2)]
    await asyncio.gather(*(traffic.write(writers, n) for n in range(WRITERS_COUNT)))
    traffic.written.set()
    everything, *feeds = await asyncio.gather(*readers)
    await asyncio.gather(*sequencers)
    await writers.close()

    assert [event.event_no for event in everything] == list(range(1, len(everything) + 1))
    for partner_no, events in zip(partners, feeds, strict=True):
        assert events == [event for event in everything if event.partner_no == partner_no]
        for drop in drops:
            await assert_whole(pool, partner_no, drop, events)


async def assert_whole(
    pool: "Pool[asyncpg.Record]", partner_no: int, drop: Drop, events: Sequence[Event]
) -> None:
    """A partner's events of a drop: the opening first, `sequence` without gaps, all vouchers in order."""
    mine = documents([event for event in events if event.drop_no == drop.drop_no])
    assert mine[0]["type"] == EventType.DROP_OPENED.public
    assert [int(document["sequence"]) for document in mine] == list(range(1, len(mine) + 1))
    rows = await pool.fetch(
        "SELECT seq FROM vouchers WHERE drop_no = $1 AND partner_no = $2 ORDER BY seq",
        drop.drop_no,
        partner_no,
    )
    told_of = [voucher["seq"] for document in mine for voucher in document["data"].get("vouchers", ())]
    assert told_of == [row["seq"] for row in rows]
