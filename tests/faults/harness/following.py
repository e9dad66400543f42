"""Readers of the partners' feeds: they follow it while everything breaks, a page after the other."""

import asyncio
import sys
from collections.abc import Mapping
from time import monotonic
from typing import Final

import asyncpg

from couponsvc.client import AnswerLost, ApiRefused, AsyncPartnerClient, Unreachable
from couponsvc.client.retrying import Retries
from couponsvc.support.ending import end_tasks
from couponsvc.support.signing import HmacKey
from tests.faults.harness.final import Heard

RETRIES: Final = Retries(attempts_max_count=sys.maxsize, pause_max_s=1.0)
WAIT_S: Final = 2.0
"""How long a question waits for news: a process that ends, or is stopped, cuts it short."""
REFUSED_PAUSE_S: Final = 0.2
CATCH_UP_S: Final = 30.0
"""After everything is numbered, for whoever was held up by a fault."""
_NEWEST: Final = "SELECT coalesce(max(event_no), 0) FROM events"


class Following:
    """One reader per partner. The cursor of the next page is kept together with the page, as told."""

    def __init__(self, url: str, keys: Mapping[str, HmacKey], postgres_dsn: str) -> None:
        self._postgres_dsn: Final = postgres_dsn
        self._partners: Final = {
            partner_id: AsyncPartnerClient(url, key.key_id, key, retries=RETRIES)
            for partner_id, key in keys.items()
        }
        self._cursors: Final[dict[str, str]] = {}
        self._tasks: Final[list[asyncio.Task[None]]] = []
        self.read: Final[list[Heard]] = []
        """Every event in the order in which its partner read it."""

    async def start(self) -> None:
        """Begin behind what is told already.

        Raises:
            OSError, asyncpg.PostgresError: Postgres is not there, although nothing is broken yet.
        """
        begin = str(await self._newest())
        for partner_id in self._partners:
            self._cursors[partner_id] = begin
            self._tasks.append(asyncio.create_task(self._follow(partner_id), name=f"feed of {partner_id}"))

    async def catch_up(self, patience_s: float = CATCH_UP_S) -> None:
        """Return when both have read everything that is numbered now, or when patience is over."""
        newest = await self._newest()
        give_up_at_s = monotonic() + patience_s
        while monotonic() < give_up_at_s:
            if all(int(cursor) >= newest for cursor in self._cursors.values()):
                return
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def stop(self) -> None:
        """Read no more."""
        await end_tasks(*self._tasks)
        for partner in self._partners.values():
            await partner.close()

    async def _follow(self, partner_id: str) -> None:
        partner = self._partners[partner_id]
        while True:
            try:
                page = await partner.event_page(self._cursors[partner_id], wait_s=WAIT_S)
            except (ApiRefused, AnswerLost, Unreachable):  # 401: the clock of an API process is off
                await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            self.read.extend(Heard(partner_id, event.id, bytes(event.data)) for event in page.events)
            self._cursors[partner_id] = page.next

    async def _newest(self) -> int:
        connection = await asyncpg.connect(self._postgres_dsn)
        try:
            newest: int = await connection.fetchval(_NEWEST)
        finally:
            connection.terminate()
        return newest
