"""The one connection of a process on which grabs are decided, and whom it may be connected to.

Which Redis am I talking to? A restart, a failover or a restored copy gives the server a new
run id or replication id. Every new connection reads both before its first command and compares
them with the server that the reconciler checked last (`blessings` in Postgres). Anything else is
refused until it has been checked, so an unchecked Redis never answers a grab. A TCP connection
cannot move between server processes, so the comparison at connect holds for its whole life.

A reply that was lost is its own case (`ReplyLost`): a grant may exist, and nothing is asked
again from here. Asking again with the same numbers is the caller's right, because the script
answers a number that it has granted with the same grant.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError

from couponsvc import limits
from couponsvc.gate.grabbing import SCRIPT, Decision
from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import LineLost, Reply, RespLine, open_line
from couponsvc.support.server_identity import INFO_COMMAND, NotMaster, ServerIdentity, identity_of

log = structlog.get_logger("gate")


ReadBlessing = Callable[[], Awaitable[ServerIdentity | None]]
"""Reads who was checked last (the shard's row of `blessings`), if nobody else is being checked.

May raise OSError or asyncpg errors while Postgres is away."""


_REFUSED_AS_A_WHOLE: Final = (
    "READONLY",
    "You can't write against a read only",
    "MISCONF",
    "BUSY",
    "NOREPLICAS",
    "MASTERDOWN",
    "NOAUTH",
    "NOPERM",
)
"""Errors that Redis raises before a script's first write: nothing was decided."""


class GateClosed(Exception):
    """Nothing was decided and no grant exists. `problem` is the code to answer with."""

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(reason)
        self.problem: Final = problem


class ReplyLost(Exception):
    """The batch was sent and no reply came: every grab in it may or may not have been granted."""


TakeDecision = Callable[[Decision | GateClosed | ReplyLost], None]
"""Gets what became of a batch; neither waits nor raises."""


class _Unblessed(RedisError):
    """The server on this connection is not the one that was checked."""


class GateConnection:
    """Sends batches to the blessed server of one shard, one at a time.

    `run` keeps it connected; without it the gate stays closed after the first failure.
    """

    def __init__(self, redis_url: str, read_blessing: ReadBlessing) -> None:
        self._redis_url: Final = redis_url
        self._read_blessing: Final = read_blessing
        self._line: RespLine | None = None
        self._blessed: ServerIdentity | None = None
        self._closed_because: tuple[str, str] = ("rebuilding", "not connected yet")
        self._wake: Final = asyncio.Event()

    @property
    def closed_because(self) -> str | None:
        """Why no grab can be decided at present, or None."""
        return None if self._line is not None else self._closed_because[1]

    def decide(self, keys: Sequence[str], arguments: Sequence[bytes | int], take: TakeDecision) -> None:
        """Run `grab_batch` once; several may be on their way, and are decided in their order.

        `take` is called once, at once or later, with the decision, with GateClosed (nothing was
        decided; no grant exists) or with ReplyLost (grants may exist).
        """
        self._send("EVALSHA", SCRIPT.digest, keys, arguments, take)

    def _send(
        self,
        command: str,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[bytes | int],
        take: TakeDecision,
    ) -> None:
        def read(replies: list[Reply] | LineLost) -> None:
            if isinstance(replies, LineLost):
                self._drop("gate_unavailable", f"lost the connection to Redis: {replies}")
                take(ReplyLost(str(replies)))
                return
            (reply,) = replies
            if isinstance(reply, NoScriptError):
                # Answered before anything ran: sending the source repeats nothing.
                self._send("EVAL", SCRIPT.source, keys, arguments, take)
            elif isinstance(reply, ResponseError):
                take(self._refusal(reply))
            else:
                take(Decision(reply[0], reply[1:]))

        line = self._line
        if line is not None:
            try:
                line.send([(command, script, len(keys), *keys, *arguments)], read)
            except LineLost as lost:
                self._drop("gate_unavailable", str(lost))
            else:
                return
        take(GateClosed(*self._closed_because))

    def _refusal(self, error: ResponseError) -> GateClosed | ReplyLost:
        """What an error reply to a batch means."""
        if isinstance(error, OutOfMemoryError):
            return GateClosed("overloaded", f"Redis is out of memory: {error}")
        self._drop("gate_unavailable", f"Redis refused the batch: {error}")
        if str(error).startswith(_REFUSED_AS_A_WHOLE):
            return GateClosed(*self._closed_because)
        return ReplyLost(str(error))

    async def run(self, stop: asyncio.Event) -> None:
        """Connect, watch the blessing and connect again, until `stop` is set."""
        while not stop.is_set():
            try:
                await self._tend()
            except Exception as error:  # noqa: BLE001 - Postgres or Redis is away: keep what holds, try again
                if self._line is None:
                    self._closed_because = (_problem_of(error), f"{type(error).__name__}: {error}")
            pause_ms = limits.GATE_RECHECK_MS if self._line is None else limits.GATE_WATCH_MS
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_ms / 1000)
        self._drop("gate_unavailable", "shutting down")

    async def _tend(self) -> None:
        blessing = await self._read_blessing()
        if self._line is not None:
            # Another server may be checked and blessed while this connection lives on.
            if blessing != self._blessed:
                self._drop("rebuilding", "another Redis server is being checked or was blessed")
            return
        self._blessed = blessing
        connection = make_connection(
            self._redis_url,
            socket_timeout=limits.GATE_TIMEOUT_S,
            socket_connect_timeout=limits.GATE_CONNECT_TIMEOUT_S,
            redis_connect_func=self._introduce,
        )
        self._line = await open_line(connection, timeout_s=limits.GATE_TIMEOUT_S)
        self._line.lost.add_done_callback(self._see_loss)
        log.info("gate opened", run_id=blessing.run_id if blessing else "")

    def _see_loss(self, lost: "asyncio.Future[None]") -> None:
        """Close the gate at once where the server went away while nothing was asked of it."""
        if self._line is not None and self._line.lost is lost:
            self._drop("gate_unavailable", "lost the connection to Redis")

    async def _introduce(self, connection: AbstractConnection) -> None:
        """Run by redis-py on every new connection, whoever opens it, before any other command."""
        await connection.on_connect()
        found = await _who_is(connection)
        if found != self._blessed:
            message = f"the Redis server with run id {found.run_id[:12]} has not been checked yet"
            raise _Unblessed(message)
        await connection.send_command("SCRIPT", "LOAD", SCRIPT.source)
        await connection.read_response()

    def _drop(self, problem: str, reason: str) -> None:
        line, self._line = self._line, None
        self._closed_because = (problem, reason)
        self._wake.set()
        if line is not None:
            log.warning("gate closed", reason=reason)
            line.close()

    def close(self) -> None:
        """Close the connection."""
        self._drop("gate_unavailable", "shutting down")


def _problem_of(error: Exception) -> str:
    return "rebuilding" if isinstance(error, _Unblessed) else "gate_unavailable"


async def _who_is(connection: AbstractConnection) -> ServerIdentity:
    await connection.send_command(*INFO_COMMAND)
    text: bytes = await connection.read_response(disable_decoding=True)
    try:
        return identity_of(text)
    except NotMaster as error:
        raise _Unblessed(str(error)) from error
