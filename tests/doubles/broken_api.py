"""The contract's API over HTTP, on the shop in memory: honest, or broken in one way."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from tests.doubles.shop import Fault, Reply, Shop, problem

AUDITOR_TOKEN = "auditor-of-the-double"
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Silent(Exception):
    """Nothing is answered; the connection ends."""


class BrokenApi:
    """An ASGI application; keeps count of nothing that the oracle could look at beside the API."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, content = await self._answer(scope, body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        if scope["path"].endswith("/grabs") and self.shop.strikes(Fault.SILENT, times=30):
            headers = [*headers, (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            raise _Silent
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, body: bytes) -> Reply:
        headers = dict(scope["headers"])
        bearer = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
        path: list[str] = [*scope["path"].split("/"), "", ""]
        drop_id, action, number = path[3:6]
        if scope["method"] == "POST" and action == "grabs":
            if not bearer and b"signature" not in headers:
                return problem(401, "unauthenticated")
            asked = json.loads(body)
            confirm = headers.get(b"prefer") != b"respond-async"
            return await self.shop.grab(
                drop_id, asked["person_token"], asked["out_request_no"], confirm=confirm
            )
        if drop_id not in self.shop.drops:
            return problem(404, "unknown_drop")
        if scope["method"] == "POST":
            return self.shop.operate(drop_id, action, json.loads(body or b"{}"))
        return self._read(drop_id, action, number, bearer, scope)

    def _read(self, drop_id: str, action: str, number: str, bearer: str, scope: Scope) -> Reply:
        if action == "grabs":
            return self.shop.look_up(drop_id, number)
        if action == "ledger" and bearer != AUDITOR_TOKEN:
            return problem(403, "forbidden")
        if action == "ledger":
            query = parse_qs(scope["query_string"].decode())
            return self.shop.ledger(drop_id, int(query["after_seq"][0]), int(query["limit"][0]))
        return self.shop.figures(drop_id)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(shop: Shop) -> AsyncIterator[str]:
    """Serve the shop on a free port of this machine; yields its address."""
    # The protocol is named so that asyncio turns Nagle off for what is accepted.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            BrokenApi(shop),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",
            access_log=False,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
