"""What callers of a Redis client see of a broken network."""

import asyncio
import socket
import struct
from urllib.parse import urlsplit

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from couponsvc.support.redis_client import make_connection, open_redis
from couponsvc.support.resp import open_line
from tests.faults.harness.line import Line
from tests.faults.harness.toxic import SOUND


async def reset_between_two_commands(redis_url: str) -> None:
    """Through a line of our own: a command, RST by the network, two more commands."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(redis_url)
    host, server_port = parts.hostname or "", parts.port or 0
    lines: list[Line] = []
    connecting: list[asyncio.Task[object]] = []

    def opened(line: Line) -> None:
        lines.append(line)
        connecting.append(loop.create_task(loop.create_connection(lambda: line.server, host, server_port)))

    server = await loop.create_server(lambda: Line(lambda: SOUND, loop, opened).client, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    redis = open_redis(redis_url.replace(f":{server_port}/", f":{port}/"), max_connections=1)
    try:
        assert await redis.ping()
        lines[0].reset()
        await asyncio.sleep(0.01)  # the RST arrives
        with pytest.raises(RedisConnectionError):
            await redis.ping()
        assert await redis.ping()
    finally:
        await redis.aclose()
        server.close()
        while not all(line.over for line in lines):  # both ends of each close in the loop's next turns
            await asyncio.sleep(0.001)


def test_a_connection_that_was_reset_while_idle_is_a_connection_error_and_then_opened_anew(
    redis_url: str,
) -> None:
    # On uvloop, as our processes run: it once said RuntimeError, which ended drainers and reconcilers.
    uvloop.run(reset_between_two_commands(redis_url))


async def open_lines_that_are_reset_at_once(attempts_count: int) -> None:
    reset_at_once = struct.pack("ii", 1, 0)
    listener = socket.create_server(("127.0.0.1", 0), backlog=attempts_count)
    listener.settimeout(0)
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        while True:
            accepted, _ = await loop.sock_accept(listener)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_at_once)
            accepted.close()

    accepting = loop.create_task(accept())
    url = f"redis://:password@127.0.0.1:{listener.getsockname()[1]}/0"
    try:
        for _ in range(attempts_count):
            with pytest.raises((RedisConnectionError, OSError)):
                await open_line(make_connection(url), timeout_s=1.0)
    finally:
        accepting.cancel()
        listener.close()


def test_a_line_that_is_reset_while_it_is_opened_is_a_connection_error() -> None:
    # As RuntimeError it ended API processes in the middle of a failover.
    uvloop.run(open_lines_that_are_reset_at_once(20))
