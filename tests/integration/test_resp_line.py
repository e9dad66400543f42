"""A line to Redis: replies in order, errors as values, and a lost reply is told to everybody who waits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import LineLost, RespLine, open_line
from tests.servers import RedisServer

KEY = "cs:{s0}:line"


@asynccontextmanager
async def line_to(
    url: str, timeout_s: float | None = 2.0, receive: Callable[[bytes, bytes], None] | None = None
) -> AsyncIterator[RespLine]:
    line = await open_line(make_connection(url), timeout_s=timeout_s, receive=receive)
    try:
        yield line
    finally:
        line.close()


async def test_replies_come_in_the_order_of_the_commands(redis: Redis, redis_url: str) -> None:
    await redis.ping()
    async with line_to(redis_url) as line:
        assert await line.ask(("SET", KEY, 7), ("GET", KEY), ("GET", b"cs:{s0}:none")) == [b"OK", b"7", None]
        answers = await asyncio.gather(*(line.call("ECHO", n) for n in range(200)))
        assert answers == [b"%d" % n for n in range(200)]


async def test_a_refused_command_is_an_error_for_its_own_caller_only(redis: Redis, redis_url: str) -> None:
    await redis.ping()
    async with line_to(redis_url) as line:
        first, second = await line.ask(("EVALSHA", "0" * 40, 0), ("ECHO", "still here"))
        assert isinstance(first, NoScriptError)
        assert second == b"still here"
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await line.call(
                "EVAL", "redis.call('SET', KEYS[1], 1) return redis.call('LPOP', KEYS[1])", 1, KEY
            )
        assert line.usable


async def test_a_big_reply_arrives_whole(redis: Redis, redis_url: str) -> None:
    await redis.ping()
    async with line_to(redis_url) as line:
        big = bytes(range(256)) * 8_000
        assert await line.ask(("SET", KEY, big), ("GET", KEY)) == [b"OK", big]


async def test_published_messages_reach_the_receiver_beside_replies(redis: Redis, redis_url: str) -> None:
    heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    async with line_to(redis_url, None, lambda *message: heard.put_nowait(message)) as line:
        assert await line.call("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
        for number in range(3):
            await redis.publish("news", number)
        async with asyncio.timeout(5):
            assert [await heard.get() for _ in range(3)] == [(b"news", b"%d" % n) for n in range(3)]


async def test_a_reply_that_does_not_come_in_time_ends_the_line_for_all(redis: Redis, redis_url: str) -> None:
    await redis.ping()
    async with line_to(redis_url, 0.2) as line:
        slow, next_one = line.ask(("BLPOP", "nothing", 5)), line.ask(("PING",))
        with pytest.raises(LineLost, match="in time"):
            await slow
        with pytest.raises(LineLost):
            await next_one
        assert not line.usable
        with pytest.raises(LineLost, match="closed"):
            await line.call("PING")


async def test_a_call_may_wait_longer_than_the_line_allows_where_it_says_so(
    redis: Redis, redis_url: str
) -> None:
    await redis.ping()
    async with line_to(redis_url, 0.1) as line:
        assert await line.call("BLPOP", "nothing", "0.3", timeout_s=5) is None
        assert line.usable


async def test_a_caller_that_went_away_shifts_nobodys_reply(redis: Redis, redis_url: str) -> None:
    await redis.ping()
    async with line_to(redis_url) as line:
        gone, kept = line.ask(("ECHO", "gone")), line.ask(("ECHO", "kept"))
        gone.cancel()
        assert await kept == [b"kept"]


async def test_a_killed_server_is_told_as_a_lost_line(redis_server: RedisServer, redis: Redis) -> None:
    await redis.ping()
    async with line_to(redis_server.url) as line:
        waiting = line.ask(("BLPOP", "nothing", 0), timeout_s=30)
        await redis.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(LineLost):
            await asyncio.wait_for(waiting, 5)
        assert line.lost.done()


def test_a_connection_that_closed_before_it_was_taken_over_is_a_lost_line(redis_url: str) -> None:
    # On uvloop, as our processes run: nobody would ever have told the line that it is lost.
    async def take_over_closed() -> None:
        connection = make_connection(redis_url)
        await connection.connect()  # type: ignore[no-untyped-call]
        writer = connection._writer  # noqa: SLF001 - what the network does to it, we do
        assert writer is not None
        writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(LineLost, match="not open"):
            RespLine.take_over(connection, timeout_s=1.0)
        await connection.disconnect()

    uvloop.run(take_over_closed())


def test_a_write_to_a_socket_that_is_gone_tells_everybody_that_the_line_is_lost(redis_url: str) -> None:
    async def write_after_the_end() -> None:
        async with line_to(redis_url) as line:
            waiting = line.ask(("BLPOP", "nothing", 5))
            transport = line._transport  # noqa: SLF001 - as above
            transport.set_protocol(asyncio.Protocol())  # so that the loss is seen by the write alone
            transport.abort()
            await asyncio.sleep(0.01)
            for asked in (line.ask(("PING",)), waiting):
                with pytest.raises(LineLost):
                    await asked
            assert not line.usable

    uvloop.run(write_after_the_end())
