"""`couponsvc up` with receivers: subscribing, waiting until everything was delivered, pausing the relay."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import asyncpg
import httpx2

from bench.events.receiving import Receiver, receiver
from bench.scale.service import Service
from couponsvc.client import AsyncPartnerClient
from couponsvc.demo.cpu import pids_of
from couponsvc.demo.stack import Stack

TYPES: Final = ("couponsvc.voucher.issued.v1",)
ENVIRONMENT: Final = {"COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true"}
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.02
STOCK: Final = 10_000_000

_UNTOLD = """
SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM deliveries WHERE parked_at IS NULL)
"""
_UNNUMBERED = "SELECT count(*) FROM outbox"


class SubscribedService:
    """A service whose partner has a receiver; made by `subscribed_service`."""

    def __init__(
        self,
        service: Service,
        partner: AsyncPartnerClient,
        well: Receiver,
        connection: "asyncpg.Connection[asyncpg.Record]",
    ) -> None:
        self.service: Final = service
        self.well: Final = well
        self._partner: Final = partner
        self._connection: Final = connection

    @asynccontextmanager
    async def subscription(self, url: str | None = None) -> AsyncIterator[str]:
        """The partner's subscription of its receiver, or of another URL, for a while."""
        made = await self._partner.subscribe(url or self.well.url(), TYPES)
        if url is None:
            await self.well.trust(made.secret)
        try:
            yield made.subscription_id
        finally:
            await self._partner.unsubscribe(made.subscription_id)

    @contextmanager
    def relay_paused(self) -> Iterator[None]:
        """Nobody numbers or delivers for a while."""
        pids = pids_of(self.service.root_pid, "relay")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def numbered(self) -> None:
        """Wait until the outbox is empty.

        Raises:
            TimeoutError: it does not become empty.
        """
        await _until(lambda: self._none(_UNNUMBERED))

    async def told(self) -> None:
        """Wait until nothing is left to deliver.

        Raises:
            TimeoutError: something is.
        """
        await _until(lambda: self._none(_UNTOLD))

    async def heard(self, vouchers: int) -> None:
        """Wait until the receiver has so many vouchers since its last report.

        Raises:
            TimeoutError: it does not get them.
        """

        async def all_there() -> bool:
            return await self.well.count() >= vouchers

        await _until(all_there)

    async def nothing_in_flight(self) -> None:
        """Wait until the relay has no delivery under way, as to receivers that never answer.

        Raises:
            TimeoutError: it has.
        """
        await _until(self._rests)

    async def _none(self, question: str) -> bool:
        return not await self._connection.fetchval(question)

    async def _rests(self) -> bool:
        async with httpx2.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"{self.service.url}/metrics")).text
        found = re.search(r"^couponsvc_deliveries_in_flight(?:{.*})? (\S+)$", text, re.MULTILINE)
        return found is not None and float(found[1]) == 0


@asynccontextmanager
async def subscribed_service(drop_id: str) -> AsyncIterator[SubscribedService]:
    """A fresh service with one open drop of endless stock, and a receiver.

    Raises:
        couponsvc.demo.stack.StackFailed: it does not start.
    """
    with Stack(None, 1, ENVIRONMENT) as stack:
        partner = AsyncPartnerClient.of(stack.run.url, stack.credentials)
        async with Service(stack) as service, receiver() as well, partner:
            connection = await asyncpg.connect(service.dsn)
            try:
                await service.define([(drop_id, STOCK, True)])
                yield SubscribedService(service, partner, well, connection)
            finally:
                await connection.close()


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await holds():
                return
            await asyncio.sleep(POLL_S)
