"""Readers of the partners' feeds: they follow it while everything breaks, each in another way.

One partner asks for page after page, the other lets its client do so; and each reads the stream as well.
"""

import asyncio
import sys
from collections.abc import Mapping
from itertools import cycle
from time import monotonic
from typing import Final

import asyncpg
import msgspec

from couponsvc.client import AnswerLost, ApiRefused, AsyncPartnerClient, Event, Unreachable
from couponsvc.client.retrying import Retries
from couponsvc.support.ending import end_tasks
from couponsvc.support.signing import HmacKey
from tests.faults.harness.final import Heard
from tests.faults.harness.streaming import stream

RETRIES: Final = Retries(attempts_max_count=sys.maxsize, pause_max_s=1.0)
WAIT_S: Final = 2.0
"""How long a question waits for news: a process that ends, or is stopped, cuts it short."""
REFUSED_PAUSE_S: Final = 0.2
CATCH_UP_S: Final = 30.0
"""After everything is numbered, for whoever was held up by a fault."""
_NEWEST: Final = """
SELECT p.partner_id, coalesce(max(e.event_no), 0) AS newest
FROM partners p
LEFT JOIN events e USING (partner_no)
GROUP BY p.partner_id
"""


class Following:
    """Two readers per partner. A cursor is kept together with what came before it, as told."""

    def __init__(self, url: str, keys: Mapping[str, HmacKey], postgres_dsn: str) -> None:
        self._url: Final = url
        self._keys: Final = keys
        self._postgres_dsn: Final = postgres_dsn
        self._partners: Final = {
            partner_id: AsyncPartnerClient(url, key.key_id, key, retries=RETRIES)
            for partner_id, key in keys.items()
        }
        self._cursors: Final[dict[tuple[str, str], str]] = {}
        """By partner and way."""
        self._tasks: Final[list[asyncio.Task[None]]] = []
        self.paged: Final[list[Heard]] = []
        """Every event in the order in which its partner read it, by pages."""
        self.streamed: Final[list[Heard]] = []
        """The same, by streams."""

    async def start(self) -> None:
        """Begin behind what is told already.

        Raises:
            OSError, asyncpg.PostgresError: Postgres is not there, although nothing is broken yet.
        """
        begins = await self._newest()
        by_pages = cycle((self._page_by_page, self._by_the_client))
        for partner_id, way in zip(self._partners, by_pages, strict=False):
            for name, reading in (("paged", way), ("streamed", self._by_stream)):
                self._cursors[partner_id, name] = str(begins[partner_id])
                task = asyncio.create_task(reading(partner_id), name=f"feed of {partner_id}, {name}")
                self._tasks.append(task)

    async def catch_up(self, patience_s: float = CATCH_UP_S) -> None:
        """Return when all have read everything that is numbered now, or when patience is over."""
        newest = await self._newest()
        give_up_at_s = monotonic() + patience_s
        while monotonic() < give_up_at_s:
            if all(int(cursor) >= newest[partner_id] for (partner_id, _), cursor in self._cursors.items()):
                return
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def stop(self) -> None:
        """Read no more."""
        await end_tasks(*self._tasks)
        for partner in self._partners.values():
            await partner.close()

    async def _page_by_page(self, partner_id: str) -> None:
        partner, place = self._partners[partner_id], (partner_id, "paged")
        while True:
            try:
                page = await partner.event_page(self._cursors[place], wait_s=WAIT_S)
            except (ApiRefused, AnswerLost, Unreachable):  # 401: the clock of an API process is off
                await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            self.paged.extend(Heard(partner_id, event.id, bytes(event.data)) for event in page.events)
            self._cursors[place] = page.next

    async def _by_the_client(self, partner_id: str) -> None:
        partner, place = self._partners[partner_id], (partner_id, "paged")
        while True:
            try:
                async for cursor, event in partner.events(self._cursors[place], wait_s=WAIT_S):
                    self.paged.append(Heard(partner_id, event.id, bytes(event.data)))
                    self._cursors[place] = cursor
            except ApiRefused:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _by_stream(self, partner_id: str) -> None:
        place = (partner_id, "streamed")
        async for told in stream(self._url, self._keys[partner_id], self._cursors[place]):
            if told.data:
                event = msgspec.json.decode(told.data, type=Event)
                self.streamed.append(Heard(partner_id, event.id, bytes(event.data)))
            self._cursors[place] = told.cursor

    async def _newest(self) -> dict[str, int]:
        """Number of each partner's newest event; 0: it has none."""
        connection = await asyncpg.connect(self._postgres_dsn)
        try:
            rows = await connection.fetch(_NEWEST)
        finally:
            connection.terminate()
        return {row["partner_id"]: row["newest"] for row in rows}
