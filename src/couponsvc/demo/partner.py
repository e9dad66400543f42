"""The demo's partner, as a process of its own: receives webhooks, verifies, writes its books, answers.

`python -m couponsvc.demo.partner` reads a `PartnerPlan` from standard input, because a secret does
not belong on a command line. It may be killed at any moment: it answers only what it has committed.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn

from couponsvc.client import BadWebhook, WebhookVerifier
from couponsvc.demo.partner_ledger import PartnerLedger

BODY_MAX_BYTES: Final = 1024 * 1024
"""An event with 500 vouchers has about 175 kB."""

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class PartnerPlan(msgspec.Struct, frozen=True):
    """What the process is told."""

    port: int
    secrets: list[str]
    """`whsec_…`, each that may have signed."""
    ledger_path: str


class Partner:
    """The receiver, as an ASGI callable: `POST` of one event to any path."""

    def __init__(self, verifier: WebhookVerifier, ledger: PartnerLedger) -> None:
        self._verifier = verifier
        self._ledger = ledger

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer 204 once the event is committed, 400 where it is not from the service."""
        body = await _read(receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._verifier.open(headers, body)
        except BadWebhook:
            status = 400
        else:
            self._ledger.remember(body, time.time_ns() // 1_000_000)
            status = 204
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})


async def _read(receive: _Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if sum(map(len, chunks)) > BODY_MAX_BYTES or not message.get("more_body", False):
            return b"".join(chunks)


def main() -> None:
    """Serve until killed."""
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=PartnerPlan)
    with PartnerLedger(Path(plan.ledger_path)) as ledger:
        config = uvicorn.Config(
            Partner(WebhookVerifier(plan.secrets), ledger),
            host="127.0.0.1",
            port=plan.port,
            lifespan="off",
            access_log=False,
            log_level="error",
            server_header=False,
        )
        asyncio.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
