"""Receivers of webhooks on loopback ports, kind and unkind, and the subscriptions that lead to them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Self

import asyncpg
import msgspec

from couponsvc.outbox.leasing import Pool
from couponsvc.outbox.subscriptions import SECRET_PURPOSE
from couponsvc.support.sealing import MasterKey
from couponsvc.support.webhook_signature import new_secret
from couponsvc.values.event import SUBSCRIBABLE, subscription_id
from tests.conftest import MASTER_KEY

_SUBSCRIBE = """
INSERT INTO subscriptions (partner_no, url, types, drop_nos, sealed_secret)
SELECT partner_no, $2, $3, NULL, '' FROM partners WHERE partner_id = $1 RETURNING subscription_no
"""


@dataclass(frozen=True, slots=True)
class Received:
    """One request."""

    at: float
    """By `monotonic`, when its body was complete."""
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded


@dataclass
class Receiver:
    """Answers every request with `status` once `delay_s` is over, and keeps it.

    `behaviour`: `answer`, `hang` (takes the request and says nothing), `drip` (a byte of the answer a
    second). `status_of` and `delay_of`, where given, decide for each request.
    """

    status: int = 200
    delay_s: float = 0.0
    behaviour: str = "answer"
    status_of: Callable[[Received], int] | None = None
    delay_of: Callable[[Received], float] | None = None
    on_request: Callable[[Received], None] = lambda _: None
    requests: list[Received] = field(default_factory=list)
    at_once: int = 0
    at_once_max: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [request.webhook_id for request in self.requests]

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[Self]:
        """Serve until the block ends."""
        connections: set[asyncio.Task[Any]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._one(reader, writer)
            connections.discard(task)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(connections):
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        headers = {name.lower(): value for name, value in headers.items()}
        body = await reader.readexactly(int(headers["content-length"]))
        request = Received(monotonic(), headers, body)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            self.requests.append(request)
            self.on_request(request)
            await self._answer(request, writer)
        finally:
            self.at_once -= 1

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        status = self.status_of(request) if self.status_of else self.status
        answer = b"HTTP/1.1 %d X\r\ncontent-length: 100\r\n\r\n" % status + b"." * 100
        match self.behaviour:
            case "hang":
                await asyncio.sleep(3_600)
            case "drip":
                for byte in answer:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            case _:
                await asyncio.sleep(self.delay_of(request) if self.delay_of else self.delay_s)
                writer.write(answer)
                await writer.drain()


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription and its secret."""

    subscription_no: int
    secret: str

    @property
    def subscription_id(self) -> str:
        return subscription_id(self.subscription_no)


async def subscribe(
    pool: Pool, url: str, *, partner_id: str = "bank-a", types: Sequence[str] = SUBSCRIBABLE
) -> Subscribed:
    """A subscription in Postgres, whatever its URL."""
    number = await pool.fetchval(_SUBSCRIBE, partner_id, url, list(types))
    secret = new_secret()
    await pool.execute(
        "UPDATE subscriptions SET sealed_secret = $2 WHERE subscription_no = $1",
        number,
        seal(number, secret),
    )
    return Subscribed(number, secret)


def seal(subscription_no: int, secret: str) -> bytes:
    master_key = MasterKey.from_base64(MASTER_KEY)
    return master_key.seal(secret.encode(), SECRET_PURPOSE, subscription_id(subscription_no))


async def subscription(pool: Pool, subscription_no: int) -> asyncpg.Record:
    row = await pool.fetchrow("SELECT * FROM subscriptions WHERE subscription_no = $1", subscription_no)
    assert row is not None
    return row


async def queue(pool: Pool, subscription_no: int) -> list[asyncpg.Record]:
    return await pool.fetch(
        "SELECT * FROM deliveries WHERE subscription_no = $1 ORDER BY event_no", subscription_no
    )


async def attempts(pool: Pool, subscription_no: int) -> list[asyncpg.Record]:
    return await pool.fetch(
        "SELECT * FROM delivery_attempts WHERE subscription_no = $1 ORDER BY attempted_at, event_no",
        subscription_no,
    )
