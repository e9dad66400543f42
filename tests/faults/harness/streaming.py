"""A reader of a partner's feed as Server-Sent Events, as a browser's EventSource would read it.

It comes back with the last `id` that it got, with an event or without one; whatever cut it off.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import httpx2

from couponsvc.client.requests import read_request
from couponsvc.support.signing import HmacKey

COMES_BACK_AFTER_S: Final = 0.2
SILENCE_S: Final = 3.0
"""After which it opens another stream. Comments come every fifteen seconds, so this is no sign of an
end; but a process that is stopped for a while says nothing either, and the reader must catch up."""


class Told(NamedTuple):
    """What an `id`, with or without an event, brought."""

    cursor: str
    data: bytes
    """Of the event; empty: up to `cursor` there was none."""


async def stream(url: str, key: HmacKey, after: str) -> AsyncIterator[Told]:
    """Read on and on from a cursor. Ends only when it is closed."""
    async with httpx2.AsyncClient(trust_env=False, timeout=httpx2.Timeout(SILENCE_S)) as http:
        while True:
            try:
                async for told in _one_stream(http, url, key, after):
                    after = told.cursor
                    yield told
            except (httpx2.HTTPError, OSError):
                pass
            await asyncio.sleep(COMES_BACK_AFTER_S)


async def _one_stream(http: httpx2.AsyncClient, url: str, key: HmacKey, after: str) -> AsyncIterator[Told]:
    request = read_request("events", "stream")
    headers = [*request.signed_headers(key), (b"last-event-id", after.encode())]
    async with http.stream("GET", url + request.target.decode(), headers=headers) as answer:
        if not answer.is_success:  # 401: the clock of an API process is off; 503: no Postgres
            return
        cursor, data = after, list[bytes]()
        async for line in answer.aiter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:  # what came since the last empty line is whole
                yield Told(cursor, b"\n".join(data))
                data.clear()
            elif name == "id":
                cursor = value
            elif name == "data":
                data.append(value.encode())
