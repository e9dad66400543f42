"""A bare line to Redis: commands out in one write, replies back in order, nothing in between.

redis-py connects (TLS, passwords, database, checks at connect); then this takes its socket over.
Why: on the way of a grab a call through redis-py's streams costs about a millisecond of CPU per
batch on a small machine, and a line about a tenth of it. Nothing is ever sent twice from here: a
reply that does not come is `LineLost`, and whoever asked decides what that means.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Self, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

Argument = str | bytes | int
Reply = Any
"""Bytes, int, None, a list of replies, or (in a list that `ask` returns) a ResponseError."""

_KINDS: Final[dict[str, type[ResponseError]]] = {"NOSCRIPT": NoScriptError, "OOM": OutOfMemoryError}
_MESSAGE: Final = b"message"
_MESSAGE_PARTS: Final = 3


_pack: Final = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)


class LineLost(ConnectionError):
    """The line broke or a reply did not come in time: what was sent may have been done."""


Take = Callable[[list[Reply] | LineLost], None]
"""Gets the replies to one write, or why there are none; neither waits nor raises."""


class _Expected(NamedTuple):
    """The replies to one write."""

    take: Take
    command_count: int
    replies: list[Reply]
    timer: asyncio.TimerHandle | None


def _error(text: str) -> ResponseError:
    """A reply that begins with `-`; its text keeps the code in front."""
    return _KINDS.get(text.partition(" ")[0], ResponseError)(text)


class RespLine(asyncio.Protocol):
    """One connection, RESP2. Replies are bytes.

    Made by `take_over`. Every call may be used from the running loop only.
    """

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        timeout_s: float | None,
        receive: Callable[[bytes, bytes], None] | None,
    ) -> None:
        self._writer: Final = writer
        """Only held: it would close the transport when it is collected."""
        # uvloop's transports are none of asyncio's classes.
        self._transport: Final = cast("asyncio.Transport", writer.transport)
        self._timeout_s: Final = timeout_s
        self._receive: Final = receive
        self._reader: Final = hiredis.Reader(protocolError=LineLost, replyError=_error)
        self._expected: Final[deque[_Expected]] = deque()
        self._loop: Final = asyncio.get_running_loop()
        self.lost: Final[asyncio.Future[None]] = self._loop.create_future()
        """Done when the line is no longer usable."""

    @classmethod
    def take_over(
        cls,
        connection: AbstractConnection,
        *,
        timeout_s: float | None,
        receive: Callable[[bytes, bytes], None] | None = None,
    ) -> Self:
        """Take the socket of a connected redis-py connection, which must not be used afterwards.

        Args:
            connection: With `protocol=2`, connected, no reply outstanding.
            timeout_s: How long a reply may take; None: as long as it likes.
            receive: Gets `(channel, data)` of every published message of a line that subscribed.

        Raises:
            LineLost: it is not connected, or no longer.
        """
        writer = connection._writer  # noqa: SLF001 - the one thing that redis-py has no name for
        # A loss that redis-py was told of would not be told again, and the line would look usable for ever.
        if writer is None or writer.transport.is_closing():
            raise LineLost("the connection to Redis is not open")
        connection._writer = connection._reader = None  # noqa: SLF001 - no longer its to close
        line = cls(writer, timeout_s, receive)
        writer.transport.set_protocol(line)
        return line

    @property
    def usable(self) -> bool:
        """Whether a command may be sent."""
        return not self.lost.done()

    def send(
        self, commands: Sequence[Sequence[Argument]], take: Take, *, timeout_s: float | None = None
    ) -> None:
        """Send commands in one write; `take` gets their replies in order, errors as values.

        `take` is called as soon as the last reply is read, in the midst of the loop's reading.

        Args:
            commands: Each with its arguments.
            take: Called once. LineLost: it broke; any of the commands may have been done.
            timeout_s: How long the replies may take in place of the line's own limit.

        Raises:
            LineLost: it was broken before; nothing was sent and `take` will not be called.
        """
        if self.lost.done():
            raise LineLost("the line to Redis is closed")
        data = b"".join([_pack(tuple(command)) for command in commands])
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        timer = None if limit_s is None else self._loop.call_later(limit_s, self._overdue)
        self._expected.append(_Expected(take, len(commands), [], timer))
        try:
            self._transport.write(data)
        except RuntimeError as error:  # uvloop's, of a socket that is closed already
            self._lose(LineLost(f"the connection to Redis was lost: {error}"))

    def ask(
        self, *commands: Sequence[Argument], timeout_s: float | None = None
    ) -> "asyncio.Future[list[Reply]]":
        """As `send`, with a future that gets the replies.

        Raises (the future):
            LineLost: it broke; any of the commands may have been done.
        """
        future: asyncio.Future[list[Reply]] = self._loop.create_future()

        def take(replies: list[Reply] | LineLost) -> None:
            if future.done():
                return
            if isinstance(replies, LineLost):
                future.set_exception(replies)
            else:
                future.set_result(replies)

        try:
            self.send(commands, take, timeout_s=timeout_s)
        except LineLost as lost:
            future.set_exception(lost)
        return future

    async def call(self, *command: Argument, timeout_s: float | None = None) -> Reply:
        """Send one command and wait for its reply.

        Raises:
            ResponseError: Redis refused it (NoScriptError, OutOfMemoryError where it says so).
            LineLost: it broke; the command may have been done.
        """
        (reply,) = await self.ask(command, timeout_s=timeout_s)
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    def data_received(self, data: bytes) -> None:
        """Hand out the replies that are complete."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except LineLost as error:
            self._lose(error)

    def _take(self, reply: Reply) -> None:
        if (
            self._receive is not None
            and type(reply) is list
            and len(reply) == _MESSAGE_PARTS
            and reply[0] == _MESSAGE
        ):
            self._receive(reply[1], reply[2])
            return
        if not self._expected:
            raise LineLost("Redis sent a reply that nobody asked for")
        take, command_count, replies, timer = self._expected[0]
        replies.append(reply)
        if len(replies) == command_count:
            self._expected.popleft()
            if timer is not None:
                timer.cancel()
            take(replies)

    def _overdue(self) -> None:
        self._lose(LineLost("no reply from Redis in time"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        self._lose(LineLost(f"the connection to Redis was lost: {exc or 'closed'}"))

    def _lose(self, error: LineLost) -> None:
        if self.lost.done():
            return
        self.lost.set_result(None)
        self._transport.abort()
        while self._expected:
            take, _, _, timer = self._expected.popleft()
            if timer is not None:
                timer.cancel()
            take(error)

    def close(self) -> None:
        """Close the socket; who still waits is told `LineLost`."""
        self._lose(LineLost("the line to Redis was closed here"))


async def open_line(
    connection: AbstractConnection,
    *,
    timeout_s: float | None,
    receive: Callable[[bytes, bytes], None] | None = None,
) -> RespLine:
    """Connect with redis-py, then take over; arguments as `RespLine.take_over`.

    Raises:
        redis.exceptions.RedisError, OSError: no connection, or refused at connect.
    """
    await connection.connect()  # type: ignore[no-untyped-call]
    return RespLine.take_over(connection, timeout_s=timeout_s, receive=receive)
