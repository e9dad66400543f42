"""A receiver of webhooks, as a process of its own: verifies, counts, notes when it came.

`python -m bench.events.receiver` listens on a free port, which is its first line of output. It reads
commands from standard input, one JSON text a line, and answers each with one:
`{"trust": "whsec_…"}`, `{"report": true}` (what came since the last report), `{"count": true}`
(vouchers since then), `{"forget": true}`.

How it answers is in the path, so that one process can be every kind of receiver: `/well` at once,
`/slow` after SLOW_S, `/drip` one byte a second, `/silent` never. Only `/well` is counted.
"""

import asyncio
import json
import sys
from collections import Counter
from datetime import datetime
from time import time
from typing import Any, Final, cast

import httptools
import msgspec
import uvloop

from bench.open_loop import latency_of
from couponsvc.support.webhook_signature import BadWebhookSignature, verify

SLOW_S: Final = 5.0
DRIP_S: Final = 1.0
ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
REFUSAL: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
DRIPPED: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"." * 1000
STREAM_LIMIT_BYTES: Final = 1 << 20


class _Voucher(msgspec.Struct):
    seq: int
    issued_at: str


class _Data(msgspec.Struct):
    drop_id: str = ""
    vouchers: list[_Voucher] = []


class _Event(msgspec.Struct):
    id: str
    data: _Data


_EVENTS: Final = msgspec.json.Decoder(_Event)


class Inbox:
    """What came: verified, counted once, with the age of every voucher when it came."""

    def __init__(self) -> None:
        self.secrets: list[str] = []
        self._known: set[str] = set()
        self._seqs: dict[str, set[int]] = {}
        self._fresh()

    def _fresh(self) -> None:
        self._events = self.vouchers = self._repeated = self._refused = 0
        self._first_s = self._last_s = 0.0
        self._ages_ms: Counter[float] = Counter()

    def take(self, headers: dict[str, str], body: bytes) -> bytes:
        """The answer to one webhook."""
        now_s = time()
        try:
            verify(self.secrets, headers, body, now_s=int(now_s))
            event = _EVENTS.decode(body)
        except (BadWebhookSignature, msgspec.DecodeError):
            self._refused += 1
            return REFUSAL
        if event.id in self._known or event.id != headers["webhook-id"]:
            self._repeated += 1
            return ANSWER
        self._known.add(event.id)
        self._first_s, self._last_s = self._first_s or now_s, now_s
        self._events += 1
        vouchers = event.data.vouchers
        self.vouchers += len(vouchers)
        self._seqs.setdefault(event.data.drop_id, set()).update([voucher.seq for voucher in vouchers])
        for issued_at, count in Counter([voucher.issued_at for voucher in vouchers]).items():
            issued_s = datetime.fromisoformat(issued_at).timestamp()
            self._ages_ms[(now_s - issued_s) * 1000] += count
        return ANSWER

    def report(self) -> dict[str, Any]:
        """What came since the last report; `missing`: numbers below the highest that never came."""
        lag = latency_of(self._ages_ms.elements())
        missing = sum(max(seqs, default=0) - len(seqs) for seqs in self._seqs.values())
        report = {
            "events": self._events, "vouchers": self.vouchers, "repeated": self._repeated,
            "refused": self._refused, "missing": missing, "first_s": self._first_s, "last_s": self._last_s,
            "p50_ms": lag.p50_ms, "p99_ms": lag.p99_ms, "max_ms": lag.max_ms,
        }  # fmt: skip
        self._fresh()
        return report

    def forget(self) -> None:
        """Forget which events and numbers came: another ledger has the same ones."""
        self._known.clear()
        self._seqs.clear()
        self._fresh()


class Connection(asyncio.Protocol):
    """One kept-open connection of a relay."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._answering: asyncio.Task[None] | None = None
        self.on_message_begin()

    # --- asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it to answer."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own kind

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody is left to answer."""
        del error
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what came; callbacks do the rest."""
        self._parser.feed_data(data)

    # --- httptools
    def on_message_begin(self) -> None:
        """A request begins."""
        self._path, self._headers, self._body = b"", dict[str, str](), list[bytes]()

    def on_url(self, url: bytes) -> None:
        """Its path says how to answer."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer."""
        assert self._transport is not None
        if self._path == b"/well":
            self._transport.write(self._inbox.take(self._headers, b"".join(self._body)))
        elif self._path != b"/silent":
            self._answering = asyncio.create_task(self._answer_badly(self._transport))

    async def _answer_badly(self, transport: asyncio.Transport) -> None:
        if self._path == b"/slow":
            await asyncio.sleep(SLOW_S)
            transport.write(ANSWER)
            return
        for byte in DRIPPED:
            transport.write(bytes([byte]))
            await asyncio.sleep(DRIP_S)


async def serve() -> None:
    """Serve until standard input ends."""
    inbox = Inbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(inbox), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader(limit=STREAM_LIMIT_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        if secret := command.get("trust"):
            inbox.secrets.append(secret)
        elif command.get("report"):
            answer = inbox.report()
        elif command.get("count"):
            answer = {"vouchers": inbox.vouchers}
        elif command.get("forget"):
            inbox.forget()
        print(json.dumps(answer), flush=True)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
