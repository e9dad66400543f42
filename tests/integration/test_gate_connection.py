"""The gate's connection: only a blessed server decides, and a lost reply is its own case."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from couponsvc.gate.connection import GateClosed, GateConnection, ReplyLost
from couponsvc.gate.grabbing import Decision, grab_command
from couponsvc.support.redis_client import open_redis
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.values import keys, wire
from couponsvc.values.grab import Grab
from tests.integration.test_grab_batch_lua import Stock
from tests.servers import RedisServer


async def who_is(redis: Redis) -> ServerIdentity:
    info = await redis.info()
    return ServerIdentity(str(info["run_id"]), str(info["master_replid"]))


@contextlib.asynccontextmanager
async def gate_on(url: str, blessed: list[ServerIdentity | None]) -> AsyncIterator[GateConnection]:
    async def read() -> ServerIdentity | None:
        return blessed[0]

    gate = GateConnection(url, read)
    stop = asyncio.Event()
    running = asyncio.create_task(gate.run(stop))
    try:
        yield gate
    finally:
        stop.set()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        gate.close()


async def until_open(gate: GateConnection) -> None:
    async with asyncio.timeout(5):
        while gate.closed_because is not None:
            await asyncio.sleep(0.01)


def one_grab(number: str = "n1") -> tuple[list[str], list[bytes | int]]:
    grab = Grab(7, "1:p1", number, "", "")
    return grab_command(0, wire.encode_origin("o", 1), [(7, 3)], [wire.grab_row(1, grab)], 100)


async def decision(gate: GateConnection, key_names: list[str], arguments: list[bytes | int]) -> Decision:
    """What the gate decided; raises GateClosed or ReplyLost."""
    told: asyncio.Future[Decision | GateClosed | ReplyLost] = asyncio.get_running_loop().create_future()
    gate.decide(key_names, arguments, told.set_result)
    answer = await told
    if not isinstance(answer, Decision):
        raise answer
    return answer


async def test_a_blessed_server_decides(redis: Redis, redis_url: str) -> None:
    await Stock().publish(redis)
    async with gate_on(redis_url, [await who_is(redis)]) as gate:
        await until_open(gate)
        assert (await decision(gate, *one_grab())).codes == b"G"


@pytest.mark.parametrize("blessing", [None, ServerIdentity("0" * 40, "0" * 40)])
async def test_a_server_that_was_not_checked_is_never_asked(
    redis: Redis, redis_url: str, blessing: ServerIdentity | None
) -> None:
    stock = await Stock().publish(redis)
    async with gate_on(redis_url, [blessing]) as gate:
        await asyncio.sleep(0.3)
        with pytest.raises(GateClosed) as closed:
            await decision(gate, *one_grab())
    assert closed.value.problem == "rebuilding"
    assert await stock.figures(redis) == (10, 0, 0)


async def test_a_restarted_server_is_noticed_before_it_answers_a_grab(
    redis_server: RedisServer, redis_url: str
) -> None:
    redis = open_redis(redis_url)
    await Stock().publish(redis)
    blessed: list[ServerIdentity | None] = [await who_is(redis)]
    await redis.aclose()
    async with gate_on(redis_url, blessed) as gate:
        await until_open(gate)
        assert (await decision(gate, *one_grab("a"))).codes == b"G"
        redis_server.restart(keep_data=True)
        refused = 0
        for _ in range(50):
            try:
                decided = await decision(gate, *one_grab("b"))
                pytest.fail(f"an unchecked server answered {decided}")
            except (GateClosed, ReplyLost):
                refused += 1
            await asyncio.sleep(0.01)
        assert refused == 50


@pytest.mark.parametrize(
    "moved", [ServerIdentity("1" * 40, "1" * 40), None], ids=["blessed", "being checked"]
)
async def test_a_moved_blessing_closes_a_connection_that_still_lives(
    redis: Redis, redis_url: str, moved: ServerIdentity | None
) -> None:
    await Stock().publish(redis)
    blessed: list[ServerIdentity | None] = [await who_is(redis)]
    async with gate_on(redis_url, blessed) as gate:
        await until_open(gate)
        blessed[0] = moved
        async with asyncio.timeout(5):
            while gate.closed_because is None:
                await asyncio.sleep(0.05)
        with pytest.raises(GateClosed):
            await decision(gate, *one_grab())


async def test_a_replica_never_decides(redis: Redis, redis_url: str) -> None:
    await Stock().publish(redis)
    blessed: list[ServerIdentity | None] = [await who_is(redis)]
    await redis.replicaof("127.0.0.1", 1)
    try:
        async with gate_on(redis_url, blessed) as gate:
            await asyncio.sleep(0.3)
            with pytest.raises(GateClosed):
                await decision(gate, *one_grab())
    finally:
        await redis.replicaof("NO", "ONE")


async def test_a_flushed_script_is_sent_again(redis: Redis, redis_url: str) -> None:
    await Stock().publish(redis)
    async with gate_on(redis_url, [await who_is(redis)]) as gate:
        await until_open(gate)
        await decision(gate, *one_grab("a"))
        await redis.script_flush()
        assert (await decision(gate, *one_grab("a"))).codes == b"P"


async def test_out_of_memory_refuses_and_the_connection_lives_on(redis: Redis, redis_url: str) -> None:
    stock = await Stock().publish(redis)
    async with gate_on(redis_url, [await who_is(redis)]) as gate:
        await until_open(gate)
        await redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(GateClosed) as closed:
                await decision(gate, *one_grab())
        finally:
            await redis.config_set("maxmemory", 0)
        assert closed.value.problem == "overloaded"
        assert await stock.figures(redis) == (10, 0, 0)
        assert (await decision(gate, *one_grab())).codes == b"G"


async def test_a_lost_reply_is_said_to_be_lost_and_the_script_ran_once(redis: Redis, redis_url: str) -> None:
    stock = await Stock().publish(redis)
    blessed: list[ServerIdentity | None] = [await who_is(redis)]
    async with reply_swallowing_proxy(redis_url) as (proxy_url, swallow), gate_on(proxy_url, blessed) as gate:
        await until_open(gate)
        swallow.set()
        with pytest.raises(ReplyLost):
            await decision(gate, *one_grab())
        assert await stock.figures(redis) == (9, 1, 1)
        swallow.clear()
        await until_open(gate)
        assert (await decision(gate, *one_grab())).codes == b"P"
    assert await redis.xlen(keys.grants_key(0)) == 1


@contextlib.asynccontextmanager
async def reply_swallowing_proxy(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A TCP proxy before Redis that keeps replies back while its event is set."""
    head, _, place = url.rpartition("@") if "@" in url else ("redis:/", "", url.removeprefix("redis://"))
    host, _, port = place.split("/")[0].partition(":")
    swallow = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not (back and swallow.is_set()):
                    writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, upstream_writer))
        await asyncio.gather(
            pump(reader, upstream_writer, back=False), pump(upstream_reader, writer, back=True)
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    own_port = server.sockets[0].getsockname()[1]
    try:
        yield f"{head}{'@' if '@' in url else '/'}127.0.0.1:{own_port}/0", swallow
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.05)
