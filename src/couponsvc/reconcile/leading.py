"""Which reconciler of a shard acts: whoever holds a lock in Postgres, for as long as it shows that it lives.

The lock ends with its session, and the session ends by itself when nothing was heard on it for
`LEASE_MS`: a process that is stopped, or whose machine is gone, is still connected as far as Postgres
can see, and would keep the others from acting for ever. The lock is for quiet only; correctness rests
on epochs and on compare-and-set, so a leader that comes back late and does not know it yet harms nobody.
"""

import asyncio
import contextlib
from typing import Final

import asyncpg

from couponsvc import limits
from couponsvc.reconcile.snapshot import QUERIES
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks
from couponsvc.support.postgres import server_settings

LOCK_KEY: Final = 0x63737263
"""First half of the advisory lock ("csrc"); the second is the shard."""
LEASE_MS: Final = 6_000
"""Silence after which Postgres ends the session: longer than a loaded machine delays a process that lives."""
BEAT_MS: Final = 1_500
CLOSE_TIMEOUT_S: Final = 1.0

assert BEAT_MS * 4 <= LEASE_MS, "a beat or two may come late"  # noqa: S101 - checked at import

log = logs.get("reconcile")


class Lead:
    """The lock of one shard, held or wanted, on a connection of its own.

    The pool takes back a connection that died, and a proxy it took back refuses even to say that it
    is closed.
    """

    def __init__(self, dsn: str, shard: int, *, lease_ms: int = LEASE_MS) -> None:
        """Prepare; `take` connects."""
        self._dsn: Final = dsn
        self._shard: Final = shard
        self._lease_ms: Final = lease_ms
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._leading = False
        """As told last."""

    @property
    def held(self) -> bool:
        """Whether we act, as far as we know."""
        beats = self._beating is not None and not self._beating.done()
        return beats and self._connection is not None and not self._connection.is_closed()

    async def take(self) -> bool:
        """Whether we hold the lock; asks for it otherwise.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres cannot be asked.
        """
        if self.held:
            return True
        await self._end_beat()
        self._note_loss("ConnectionLost")
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(
                self._dsn,
                timeout=limits.LOCK_TIMEOUT_MS / 1000,
                command_timeout=limits.STATEMENT_TIMEOUT_MS / 1000,
                server_settings={
                    **server_settings(limits.STATEMENT_TIMEOUT_MS),
                    "idle_session_timeout": str(self._lease_ms),
                },
            )
        try:
            taken = await self._connection.fetchval(QUERIES["try_lead"], LOCK_KEY, self._shard)
        except BaseException:
            self._connection.terminate()
            raise
        if taken:
            log.info("leads", shard=self._shard)
            self._leading = True
            self._beating = asyncio.create_task(self._beat(self._connection), name="lead-beat")
        return bool(taken)

    async def close(self) -> None:
        """Give up the lock; returns when Postgres has let go of it."""
        await self._end_beat()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=CLOSE_TIMEOUT_S)

    async def _end_beat(self) -> None:
        beating, self._beating = self._beating, None
        await end_tasks(beating)

    def _note_loss(self, why: str) -> None:
        """Say it once, whoever notices first."""
        if self._leading:
            self._leading = False
            log.warning("leads no more", shard=self._shard, error=why)

    async def _beat(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Be heard until the connection is lost, and the lock with it."""
        try:
            while True:
                await asyncio.sleep(BEAT_MS / 1000)
                await connection.execute(QUERIES["beat"])
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._note_loss(type(error).__name__)
            connection.terminate()
