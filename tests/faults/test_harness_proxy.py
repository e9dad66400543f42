"""The faults of a line really happen, and end: a fault that does not happen proves nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.harness.proxy import Address, Proxies, ProxyFailed, Toxic, Way
from tests.servers import wait_until_gone

pytestmark = pytest.mark.faults

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SOON_S = 0.1
"""Ample for a loopback, even on a busy machine; and what is stalled must be silent so long."""
PATIENCE_S = 5.0


class Echo:
    """A server that returns what it gets, and remembers it."""

    def __init__(self) -> None:
        self.received = b""
        self.address = Address("", 0)
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Echo"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            await close(*self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while piece := await reader.read(65_536):
                self.received += piece
                writer.write(piece)
                await writer.drain()

    async def until_received(self, content: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.received != content:
                await asyncio.sleep(0.005)


async def close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def proxies() -> Iterator[Proxies]:
    with Proxies() as running:
        yield running


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Echo().running() as server:
        yield server


@pytest.fixture
async def line(proxies: Proxies, echo: Echo) -> AsyncIterator[tuple[str, Connection]]:
    """A proxy to the echo, with a connection through it that works."""
    name = f"echo-{echo.address.port}"
    port = proxies.add(name, echo.address)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    assert await arrives(reader, 5) == b"hello"
    yield name, (reader, writer)
    proxies.heal(name)
    await close(writer)


async def arrives(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await reader.readexactly(count)


async def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing arrives, not even an end."""
    try:
        async with asyncio.timeout(SOON_S):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_latency_delays_each_way_and_keeps_the_order(
    proxies: Proxies, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    proxies.toxic(name, Toxic(latency_ms=60, jitter_ms=40))
    began = time.monotonic()
    for number in range(10):
        writer.write(b"%d" % number)
        await asyncio.sleep(0.002)
    assert await arrives(reader, 10) == b"0123456789"
    assert time.monotonic() - began >= 0.12


async def test_dripping_passes_so_many_bytes_per_second(
    proxies: Proxies, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    proxies.toxic(name, Toxic(bytes_per_s=50_000, way=Way.UP))
    began = time.monotonic()
    writer.write(b"x" * 15_000)
    await arrives(reader, 15_000)
    assert time.monotonic() - began >= 0.2


async def test_a_cut_line_stays_open_in_silence_and_delivers_what_was_sent_when_it_heals(
    proxies: Proxies, echo: Echo, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    proxies.toxic(name, Toxic(cut=Way.BOTH))
    writer.write(b" again")
    assert await silent(reader)
    assert echo.received == b"hello"
    proxies.heal(name)
    assert await arrives(reader, 6) == b" again"


async def test_a_line_cut_one_way_passes_the_other_way(
    proxies: Proxies, echo: Echo, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    proxies.toxic(name, Toxic(cut=Way.DOWN))
    writer.write(b" again")
    await echo.until_received(b"hello again")
    assert await silent(reader)
    proxies.toxic(name, Toxic(cut=Way.UP))
    assert await arrives(reader, 6) == b" again"
    writer.write(b" and again")
    assert await silent(reader)
    assert echo.received == b"hello again"


async def test_a_request_arrives_after_a_cut_although_who_sent_it_has_left(
    proxies: Proxies, echo: Echo, line: tuple[str, Connection]
) -> None:
    name, (_, writer) = line
    proxies.toxic(name, Toxic(cut=Way.BOTH))
    writer.write(b" from one who left")
    await close(writer)
    await asyncio.sleep(SOON_S)
    assert echo.received == b"hello"
    proxies.heal(name)
    await echo.until_received(b"hello from one who left")


async def test_a_held_reply_is_late_and_its_request_is_not(
    proxies: Proxies, echo: Echo, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    proxies.toxic(name, Toxic(hold_reply_s=1.0))
    began = time.monotonic()
    writer.write(b" again")
    await echo.until_received(b"hello again")
    assert time.monotonic() - began < 0.9
    assert await arrives(reader, 6) == b" again"
    assert time.monotonic() - began >= 0.99


async def test_a_reset_line_ends_with_rst_on_both_sides_and_takes_new_connections(
    proxies: Proxies, line: tuple[str, Connection]
) -> None:
    name, (reader, _) = line
    assert proxies.reset(name) == 1
    with pytest.raises(ConnectionResetError):
        await arrives(reader, 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxies.port(name))
    writer.write(b"new")
    assert await arrives(reader, 3) == b"new"
    await close(writer)


async def ask_anew(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await arrives(reader, 1)
    finally:
        await close(writer)


async def test_a_refusing_line_resets_new_connections_and_keeps_the_others(
    proxies: Proxies, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    proxies.toxic(name, Toxic(refuse=True))
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):  # some see it while connecting
        await ask_anew(proxies.port(name))
    writer.write(b" again")
    assert await arrives(reader, 6) == b" again"


async def test_a_line_that_is_aimed_elsewhere_leads_new_connections_there(
    proxies: Proxies, echo: Echo, line: tuple[str, Connection]
) -> None:
    name, _ = line
    async with Echo().running() as other:
        proxies.aim(name, other.address)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxies.port(name))
        writer.write(b"elsewhere")
        assert await arrives(reader, 9) == b"elsewhere"
        assert (echo.received, other.received) == (b"hello", b"elsewhere")
        await close(writer)


async def test_an_orderly_end_passes_through(echo: Echo, line: tuple[str, Connection]) -> None:
    _, (reader, writer) = line
    writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""  # the echo ends when its reading ends
    assert echo.received == b"hello"


async def test_many_bytes_pass_unchanged_over_a_line_that_slows_heals_and_slows_again(
    proxies: Proxies, line: tuple[str, Connection]
) -> None:
    name, (reader, writer) = line
    sent = bytes(range(256)) * 20_000  # 5 MB: more than a line holds back
    reading = asyncio.create_task(arrives(reader, len(sent)))
    for number, start in enumerate(range(0, len(sent), 500_000)):
        proxies.toxic(name, Toxic(latency_ms=30 * (number % 3), bytes_per_s=20_000_000 * (number % 2)))
        writer.write(sent[start : start + 500_000])
        await writer.drain()
    assert await reading == sent


def test_the_process_of_the_proxies_ends_with_their_context_and_refuses_what_it_cannot_do() -> None:
    with Proxies() as proxies:
        proxies.add("here", Address("127.0.0.1", 1))
        with pytest.raises(ProxyFailed, match="the name is taken"):
            proxies.add("here", Address("127.0.0.1", 1))
        with pytest.raises(ProxyFailed, match="no such proxy"):
            proxies.aim("nowhere", Address("127.0.0.1", 1))
        pid = proxies.pid
    assert wait_until_gone([pid]) == []
    with pytest.raises(ProxyFailed, match="do not run"):
        proxies.reset()
