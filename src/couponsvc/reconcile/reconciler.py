"""The reconciler process: blesses servers, looks at drops, one reconciler of a shard at a time."""

import asyncio
import contextlib
from time import monotonic
from typing import Final, Self

import asyncpg
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from couponsvc import limits
from couponsvc.reconcile.attending import Attendant, ReconcileCounts
from couponsvc.reconcile.blessing import ServerChanged, bless_server
from couponsvc.reconcile.doorbell import Doorbell
from couponsvc.reconcile.identity import end_check, read_blessing, require_server
from couponsvc.reconcile.leading import Lead
from couponsvc.reconcile.snapshot import Pool
from couponsvc.settings import Settings
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.server_identity import NotMaster, ServerIdentity
from couponsvc.support.server_settings import UnsafeServer, refuse_unsafe
from couponsvc.support.subscription import listen
from couponsvc.values import keys

REDIS_CONNECTIONS: Final = 4
POSTGRES_CONNECTIONS: Final = 4
"""One that reads holders, and room for the queries beside it; the lock has a connection of its own."""

AWAY: Final = (
    RedisError,
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a pooled connection that broke in the middle of being reset
    NotMaster,
    ServerChanged,
    UnsafeServer,
)
"""What passes when a server comes back or is set right; anything else is a bug and ends the process."""

log = logs.get("reconcile")


class Reconciler:
    """Keeps Redis in agreement with Postgres, on one shard.

    Any number may run: a lock in Postgres lets one act at a time. That is for quiet only;
    correctness rests on epochs and on compare-and-set, whoever acts.
    """

    def __init__(self, settings: Settings, pool: "Pool[asyncpg.Record]") -> None:
        self._settings: Final = settings
        self._pool: Final = pool
        self._shard: Final = settings.shard
        self._redis: Final = open_redis(
            settings.redis_url, max_connections=REDIS_CONNECTIONS, redis_connect_func=self._recognize
        )
        self._rung: ServerIdentity | None = None
        """Who answered last; connections lead there or nowhere."""
        self._doorbell: Final = Doorbell(settings.redis_url)
        self._blessed: ServerIdentity | None = None
        """As last read from Postgres, or written there."""
        self._attendant: Final = Attendant(pool, self._redis, self._shard)
        self._lead: Final = Lead(settings.postgres_dsn.get_secret_value(), self._shard)
        self._trouble = ""
        self._wake: Final = asyncio.Event()

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Connect to Postgres; Redis is connected to at first use.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be reached.
        """
        dsn = settings.postgres_dsn.get_secret_value()
        return cls(settings, await open_pool(dsn, max_size=POSTGRES_CONNECTIONS))

    async def run_once(self) -> ReconcileCounts:
        """One whole round: bless the server where needed, then look at every drop.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
                two cannot be asked.
            NotMaster, ServerChanged, UnsafeServer: nothing was blessed; try again.
        """
        counts = ReconcileCounts()
        if await self._lead.take():
            counts.blessed = await self._bless_if_unknown(read_again=True)
            await self._attendant.look_at_all(counts)
        else:
            counts.standby = True
        return counts

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set; servers that are away are waited for."""
        listening = asyncio.create_task(self._listen(), name="reconcile-listen")
        look_at = 0.0
        try:
            while not stop.is_set():
                try:
                    look_at = await self._watch(look_at)
                    self._report(None)
                except AWAY as error:
                    self._report(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), limits.BLESS_EVERY_MS / 1000)
        finally:
            await end_tasks(listening)

    async def close(self) -> None:
        """Give up the lock and close every connection."""
        await self._lead.close()
        self._pool.terminate()
        await self._redis.aclose()
        self._doorbell.close()

    async def _watch(self, look_at: float) -> float:
        """Bless where needed; look where it is time. When to look next, by `monotonic`."""
        if not await self._lead.take():
            return look_at
        due = self._wake.is_set() or monotonic() >= look_at
        blessed = await self._bless_if_unknown(read_again=due)
        if not (due or blessed):
            return look_at
        self._wake.clear()
        await self._attendant.look_at_all(ReconcileCounts())
        return monotonic() + limits.RECONCILE_EVERY_MS / 1000

    async def _bless_if_unknown(self, *, read_again: bool) -> bool:
        """Check the server that answers now unless it is the blessed one; whether it was blessed.

        Only who leads blesses, so what was read of Postgres is good until the next look; a server
        that is another one is always compared with what Postgres says at that moment.
        """
        self._rung = server = await self._doorbell.ask()
        if server == self._blessed and not read_again:
            return False
        self._blessed = previous = await read_blessing(self._pool, self._shard)
        if server == previous:
            await end_check(self._pool, self._shard)
            return False
        log.warning("redis server is unknown", run_id=server.run_id, previous=previous and previous.run_id)
        await self._redis.connection_pool.disconnect()  # none may lead to another server
        async with self._pool.acquire() as connection:
            await refuse_unsafe(self._redis, connection, allow=self._settings.unsafe_servers)
        self._blessed = None  # if it breaks off, what was begun must be ended or done again
        await bless_server(self._pool, self._redis, self._shard, server, previous)
        self._blessed = server
        return True

    async def _recognize(self, connection: AbstractConnection) -> None:
        await require_server(connection, self._rung)

    async def _listen(self) -> None:
        """Wake the watch when somebody says that a drop changed; without it, the look is only later."""
        channel = keys.control_channel(self._shard)
        await listen(self._settings.redis_url, channel, lambda _: self._wake.set())

    def _report(self, error: BaseException | None) -> None:
        """Say once what is wrong, and once that it is over; not five times a second."""
        trouble = type(error).__name__ if error else ""
        if trouble != self._trouble:
            self._trouble = trouble
            if error:
                log.warning("cannot reconcile", error=trouble, reason=str(error))
            else:
                log.info("reconciles again")
