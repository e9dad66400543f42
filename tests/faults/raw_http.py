"""HTTP as bytes: for clients that do not keep to it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

PATIENCE_S: Final = 20.0
LOOK: Final = b"GET /livez HTTP/1.1\r\nHost: couponsvc\r\n\r\n"


class RawAnswer(NamedTuple):
    """One answer off the wire."""

    status: int
    head: bytes
    body: bytes


class RawConnection:
    """A connection that sends what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._writer.transport

    @property
    def own_port(self) -> int:
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    async def send(self, data: bytes) -> None:
        """Write and wait until it is on its way; a server that hangs up meanwhile is no failure."""
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def answer(self, timeout_s: float = PATIENCE_S) -> RawAnswer:
        """The next answer; of one without a length only its head."""
        async with asyncio.timeout(timeout_s):
            head = await self._reader.readuntil(b"\r\n\r\n")
            body = b""
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    body = await self._reader.readexactly(int(value))
        return RawAnswer(int(head[9:12]), head, body)

    async def answers(self, timeout_s: float = PATIENCE_S) -> list[RawAnswer]:
        """Every answer until the server closes."""
        found = []
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found.append(await self.answer(timeout_s))
                except (asyncio.IncompleteReadError, ConnectionError):
                    return found

    async def closed(self, timeout_s: float = PATIENCE_S) -> bytes:
        """What is still sent until the server closes."""
        async with asyncio.timeout(timeout_s):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def abort(self) -> None:
        """Go without a word."""
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def connection(url: str) -> AsyncIterator[RawConnection]:
    """A new connection, gone at the end."""
    raw = await connect(url)
    try:
        yield raw
    finally:
        raw.abort()


async def connect(url: str, *, receive_buffer_bytes: int = 0) -> RawConnection:
    """A new connection; a small buffer lets the server feel early that nobody reads."""
    at = urlsplit(url)
    if not receive_buffer_bytes:
        return RawConnection(*await asyncio.open_connection(at.hostname, at.port))
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    own.setblocking(False)  # noqa: FBT003 - the standard library's signature
    await asyncio.get_running_loop().sock_connect(own, (at.hostname, at.port))
    return RawConnection(*await asyncio.open_connection(sock=own, limit=receive_buffer_bytes))


def grab_bytes(drop_id: str, person: str, number: str, *fields: str) -> bytes:
    """A grab's raw bytes; `fields` prove who sends it."""
    body = json.dumps({"person_token": person, "out_request_no": number}).encode()
    lines = [
        f"POST /v1/drops/{drop_id}/grabs HTTP/1.1",
        "Host: couponsvc",
        *fields,
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
