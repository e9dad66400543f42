"""Connections are taken many at a time, none when closed, and again after the system had no more of them."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from math import ceil
from typing import cast

import pytest
import uvloop

from couponsvc.api import accepting
from couponsvc.api.accepting import ACCEPTS_PER_TURN_COUNT, Acceptor

BACKLOG_COUNT = 512
CONNECTIONS_COUNT = 4 * ACCEPTS_PER_TURN_COUNT
TURNS_OF_A_CONNECTION_COUNT = 10
"""From a connection that is taken to its protocol's first call, and to the next look at the listener."""
PATIENCE_S = 10.0


class Greeter(asyncio.Protocol):
    """Says hello, and notes itself."""

    def __init__(self, made: "list[Greeter]") -> None:
        self.made = made
        self.lost = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made.append(self)
        self.transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.lost = True


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for client in opened:
        client.close()


def connect(listener: socket.socket, clients: list[socket.socket], count: int) -> None:
    for _ in range(count):
        client = socket.create_connection(listener.getsockname())
        client.settimeout(PATIENCE_S)
        clients.append(client)


async def until_made(made: list[Greeter], count: int) -> int:
    """Turns of the loop until so many connections are served."""
    turns = 0
    async with asyncio.timeout(PATIENCE_S):
        while len(made) < count:
            turns += 1
            await asyncio.sleep(0)
    return turns


async def end(acceptor: Acceptor, made: list[Greeter]) -> None:
    acceptor.close()
    await acceptor.wait_closed()
    for greeter in made:
        greeter.transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        while not all(greeter.lost for greeter in made):
            await asyncio.sleep(0)


def test_a_turn_takes_many_connections_where_uvloop_takes_one(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    async def scenario() -> None:
        made: list[Greeter] = []
        listener.listen(BACKLOG_COUNT)
        connect(listener, clients, CONNECTIONS_COUNT)
        acceptor = Acceptor(listener, lambda: Greeter(made), BACKLOG_COUNT)
        turns = await until_made(made, CONNECTIONS_COUNT)
        await end(acceptor, made)
        assert turns <= ceil(CONNECTIONS_COUNT / ACCEPTS_PER_TURN_COUNT) + TURNS_OF_A_CONNECTION_COUNT

    uvloop.run(scenario())


def test_what_is_taken_is_served_without_delay_of_small_writes(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    async def scenario() -> None:
        made: list[Greeter] = []
        acceptor = Acceptor(listener, lambda: Greeter(made), BACKLOG_COUNT)
        connect(listener, clients, 1)
        await until_made(made, 1)
        taken = made[0].transport.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert made[0].transport.get_extra_info("peername") == clients[0].getsockname()
        await end(acceptor, made)

    uvloop.run(scenario())


async def test_who_is_served_goes_on_and_nobody_else_is_taken_when_it_is_closed(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    made: list[Greeter] = []
    acceptor = Acceptor(listener, lambda: Greeter(made), BACKLOG_COUNT)
    connect(listener, clients, 1)
    await until_made(made, 1)
    acceptor.close()
    acceptor.close()
    connect(listener, clients, 1)
    await asyncio.wait_for(acceptor.wait_closed(), PATIENCE_S)
    await asyncio.sleep(0.05)
    assert len(made) == 1
    made[0].transport.write(b" again")
    async with asyncio.timeout(PATIENCE_S):
        while clients[0].recv(64, socket.MSG_PEEK) != b"hello again":
            await asyncio.sleep(0)
    await end(acceptor, made)


class Failing(socket.socket):
    """A listener whose next connections cannot be taken, as the system says it."""

    errors: tuple[int, ...] = ()

    def accept(self) -> tuple[socket.socket, object]:
        """Fail as told, as `accept(2)` does."""
        if self.errors:
            number, *rest = self.errors
            self.errors = tuple(rest)
            raise OSError(number, os.strerror(number))
        return super().accept()


@pytest.fixture
def failing() -> Iterator[Failing]:
    with Failing() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


async def test_without_descriptors_it_pauses_and_then_takes_who_waited(
    failing: Failing, clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE_S", 0.05)
    failing.errors = (errno.EMFILE,) * 3
    made: list[Greeter] = []
    acceptor = Acceptor(failing, lambda: Greeter(made), BACKLOG_COUNT)
    connect(failing, clients, 2)
    await asyncio.sleep(0.02)
    assert not made
    assert len(failing.errors) == 2, "one attempt, then a pause: no turning in circles"
    await until_made(made, 2)
    await end(acceptor, made)


async def test_a_connection_that_was_lost_before_it_was_taken_keeps_nobody_waiting(
    failing: Failing, clients: list[socket.socket]
) -> None:
    failing.errors = (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN)
    made: list[Greeter] = []
    acceptor = Acceptor(failing, lambda: Greeter(made), BACKLOG_COUNT)
    connect(failing, clients, 2)
    await until_made(made, 2)
    await end(acceptor, made)


async def test_a_listener_that_is_broken_is_left_alone(
    failing: Failing, clients: list[socket.socket]
) -> None:
    failing.errors = (errno.EBADF,)
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["exception"]))
    acceptor = Acceptor(failing, lambda: Greeter([]), BACKLOG_COUNT)
    connect(failing, clients, 1)
    await asyncio.sleep(0.02)
    assert [type(error) for error in said] == [OSError], "told once"
    await end(acceptor, [])


async def test_one_that_cannot_be_served_is_alone_in_that(
    listener: socket.socket, clients: list[socket.socket]
) -> None:
    made: list[Greeter] = []
    refused = [OSError(errno.ECONNRESET, "gone")]

    def make() -> Greeter:
        if refused:
            raise refused.pop()
        return Greeter(made)

    acceptor = Acceptor(listener, make, BACKLOG_COUNT)
    connect(listener, clients, 2)
    await until_made(made, 1)
    assert clients[0].recv(64) == b""
    assert clients[1].recv(64) == b"hello"
    await end(acceptor, made)
