"""A server that says what a test tells it to: every way in which an answer can arrive, or not."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Reaction = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def problem(status: int, code: str, *headers: str, retryable: bool = False) -> bytes:
    body = f'{{"code":"{code}","retryable":{str(retryable).lower()},"detail":"x"}}'.encode()
    return answer(status, body, *headers)


def says(*pieces: bytes) -> Reaction:
    async def react(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)

    return react


async def hangs_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def is_silent(writer: asyncio.StreamWriter) -> None:
    del writer


@dataclass
class Script:
    """A server that reacts to the n-th request with the n-th reaction, the last one for ever."""

    reactions: list[Reaction]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections_count: int = 0
    open_count: int = 0
    most_open_count: int = 0

    @property
    def request_lines(self) -> list[str]:
        return [request.split(b" HTTP/", 1)[0].decode() for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_count += 1
        self.open_count += 1
        self.most_open_count = max(self.most_open_count, self.open_count)
        try:
            while head := await _read_head(reader):
                length = next(
                    (
                        int(line[16:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length: ")
                    ),
                    0,
                )
                self.requests.append(head + await reader.readexactly(length))
                await self.reactions[min(len(self.requests), len(self.reactions)) - 1](writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_count -= 1
            writer.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@contextlib.asynccontextmanager
async def scripted(*reactions: Reaction, tls: ssl.SSLContext | None = None) -> AsyncIterator[Script]:
    """Serve a script; at the end every connection must be gone."""
    script = Script(list(reactions))
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=tls)
    script.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
        deadline = time.monotonic() + 2
        while script.open_count and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
