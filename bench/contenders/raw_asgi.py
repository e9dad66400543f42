"""Contender 1: the least that Python can do. A bare ASGI callable on uvicorn: body in, constant out.

Nothing is decoded, decided or stored: a yardstick for what HTTP alone costs, not an alternative.

Tuned: uvloop, httptools, no access log, no proxy, server or date headers (serving.py); header list
and body made once.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from bench.contenders.contract import EXAMPLE

type_and_length = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(EXAMPLE))]
START = {"type": "http.response.start", "status": 200, "headers": type_and_length}
BODY = {"type": "http.response.body", "body": EXAMPLE}

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(_scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Read the whole body, then answer 200."""
    message = await receive()
    chunks = [message["body"]]
    while message["more_body"]:
        message = await receive()
        chunks.append(message["body"])
    b"".join(chunks)
    await send(START)
    await send(BODY)
