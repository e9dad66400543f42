"""The partners' receivers of webhooks: they keep what is signed, and fail now and then on purpose."""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any, Final

from couponsvc.client import EVENT_TYPES, AsyncPartnerClient, BadWebhook, WebhookVerifier
from couponsvc.engines.engine import HOST
from couponsvc.support.ending import end_tasks
from couponsvc.support.signing import HmacKey
from tests.faults.harness.final import Heard

REFUSED_SHARE: Final = 0.04
"""Deliveries that are answered by 503, though they were kept."""
UNANSWERED_SHARE: Final = 0.03
"""Deliveries that are kept, and the connection closed without an answer."""
SLOW_SHARE: Final = 0.03
SLOW_S: Final = 1.5
_ANSWER: Final = b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n"


class Hearing:
    """One receiver for all partners; each has its own path, subscription and secret."""

    def __init__(self, url: str, keys: Mapping[str, HmacKey], seed: int) -> None:
        self._partners: Final = {
            partner_id: AsyncPartnerClient(url, key.key_id, key) for partner_id, key in keys.items()
        }
        self._dice: Final = random.Random(f"hearing {seed}")  # noqa: S311
        self._verifiers: Final[dict[str, WebhookVerifier]] = {}
        self._subscriptions: Final[dict[str, str]] = {}
        self._connections: Final[set[asyncio.Task[Any]]] = set()
        self._server: asyncio.Server | None = None
        self._kept: Final[dict[tuple[str, str, bytes], None]] = {}
        self.deliveries_count = 0
        self.forged_count = 0
        """Requests that were not signed with the partner's secret."""

    @property
    def heard(self) -> list[Heard]:
        """Every event once, and again for every other body that came under its id."""
        return [Heard(*kept) for kept in self._kept]

    async def start(self) -> None:
        """Listen, and subscribe both partners to everything.

        Raises:
            ApiRefused, AnswerLost, Unreachable: the service does not work.
        """
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        port = self._server.sockets[0].getsockname()[1]
        for partner_id, partner in self._partners.items():
            made = await partner.subscribe(f"http://{HOST}:{port}/{partner_id}", EVENT_TYPES)
            self._verifiers[partner_id] = WebhookVerifier([made.secret])
            self._subscriptions[partner_id] = made.subscription_id

    async def stop(self) -> None:
        """Unsubscribe and stop listening."""
        for partner_id, partner in self._partners.items():
            with contextlib.suppress(Exception):  # the service may be broken: that was found already
                if partner_id in self._subscriptions:
                    await partner.unsubscribe(self._subscriptions[partner_id])
            await partner.close()
        if self._server is not None:
            self._server.close()
        await end_tasks(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A relay that is killed or gives up breaks the connection at any point; `stop` cancels the rest.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        status = self._keep(request_line.split(" ")[1].strip("/"), headers, body)
        chance = self._dice.random()
        if chance < UNANSWERED_SHARE:
            return False
        if chance < UNANSWERED_SHARE + SLOW_SHARE:
            await asyncio.sleep(SLOW_S)
        elif chance < UNANSWERED_SHARE + SLOW_SHARE + REFUSED_SHARE:
            status = 503
        writer.write(_ANSWER % status)
        await writer.drain()
        return True

    def _keep(self, partner_id: str, headers: Mapping[str, str], body: bytes) -> int:
        if partner_id not in self._verifiers:
            return 503  # it came before we knew our secret
        self.deliveries_count += 1
        try:
            self._verifiers[partner_id].open(headers, body)
        except BadWebhook:
            self.forged_count += 1
            return 400
        self._kept[partner_id, headers["webhook-id"], body] = None
        return 204
