"""What can befall the servers beside dying: lost data, full disks, no memory, forgotten scripts."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from typing import Final

import asyncpg
from redis.asyncio import Redis

from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.support.redis_client import open_redis
from tests.faults.harness.disks import limit_files, longest_bytes
from tests.faults.harness.ledger_template import WAL_SEGMENT_MB
from tests.faults.harness.members import EngineMember
from tests.faults.harness.supervised import Supervised
from tests.faults.rush import copy_owned
from tests.servers import wait_until_gone

APPEND_ONLY: Final = "appendonlydir"
GROWING: Final = "*.incr.aof"
COPY: Final = "appendonlydir.copy"
STOP_PATIENCE_S: Final = 10.0
RECOVERY_PATIENCE_S: Final = 60.0
LOOK_EVERY_S: Final = 0.05
LOG_SPARED_BYTES: Final = WAL_SEGMENT_MB * 1024 * 1024
LOG_HIT_BYTES: Final = 64 * 1024
"""Above every control file, below a segment of the log."""
TINY_MEMORY_BYTES: Final = 1
"""Below what an empty server takes: every command that needs memory is refused."""


class EngineFaults(Supervised):
    """Faults of Redis hit whichever server is the primary now; `primary` names it."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = "redis"
        self._file_limits_bytes: Final[dict[str, int]] = {}

    @property
    def redis_url(self) -> str:
        """Of the primary, past all proxies."""
        return self.redis_url_of(self.primary)

    def redis_url_of(self, name: str) -> str:
        """Of `redis` or `replica`, past all proxies."""
        return self._redis_engine(name).url

    @property
    def postgres_dsn(self) -> str:
        """Past all proxies."""
        return self._postgres_engine.dsn

    async def redis_restart(self, *, keep_data: bool) -> None:
        """Kill it and start it again, with its append-only file or empty."""
        name = self.primary
        await self.down(name)
        if not keep_data:
            shutil.rmtree(self._redis_engine(name).home / APPEND_ONLY, ignore_errors=True)
        await self.up(name)

    async def redis_wipe(self) -> None:
        """FLUSHALL: the same server, every key gone."""
        async with self._redis() as redis:
            await redis.flushall()

    async def redis_script_flush(self) -> None:
        """Forget every script."""
        async with self._redis() as redis:
            await redis.script_flush()

    async def redis_out_of_memory(self, *, on: bool) -> None:
        """Refuse (`OOM`) every command that needs memory. Ends by itself when the server restarts."""
        async with self._redis() as redis:
            await redis.config_set("maxmemory", TINY_MEMORY_BYTES if on else 0)

    async def redis_copy_data(self) -> None:
        """Keep a copy of its append-only files as they are now; a later copy replaces it."""
        home = self._redis_engine(self.primary).home
        copy_owned(home / APPEND_ONLY, home / COPY)

    async def redis_restore_copy(self) -> None:
        """Kill it and start it again on the copy: everything since was never written."""
        name = self.primary
        home = self._redis_engine(name).home
        await self.down(name)
        copy_owned(home / COPY, home / APPEND_ONLY)
        await self.up(name)

    async def lose_confirmations(self) -> None:
        """End every subscription: what is published from here until they subscribe again is lost."""
        async with self._redis() as redis:
            await redis.client_kill_filter(_type="pubsub")

    async def postgres_stop_hard(self) -> None:
        """Immediate shutdown (SIGQUIT): no checkpoint, every session broken; it stays down."""
        self.hold("postgres")
        pid = self.pid("postgres")
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
            left = await asyncio.to_thread(wait_until_gone, [pid], patience_s=STOP_PATIENCE_S)
            assert not left, "Postgres does not stop"

    async def postgres_start(self) -> None:
        """Start it again; it recovers from its log first."""
        await self.up("postgres")

    async def until_postgres_answers(self) -> None:
        """Return when it takes connections: after a PANIC it recovers without having been restarted.

        Raises:
            TimeoutError: it does not.
        """
        async with asyncio.timeout(RECOVERY_PATIENCE_S):
            while True:
                with contextlib.suppress(asyncpg.PostgresError, OSError):
                    connection = await asyncpg.connect(self.postgres_dsn)
                    connection.terminate()
                    return
                await asyncio.sleep(LOOK_EVERY_S)

    async def redis_disk_full(self, *, on: bool) -> None:
        """Its append-only file takes not one byte more: the next write ends the server (see `disks`).

        Supervision starts it again, and each new process ends at its first write until this is off.
        """
        if on:
            # Of the files that grow: the base, which a replication may have left, can be longer.
            longest = longest_bytes(self._redis_engine(self.primary).home / APPEND_ONLY, GROWING)
            self._limit_files([self.primary], longest)
        else:
            self._limit_files([*self.members("redis"), *self.members("replica")], None)

    async def postgres_disk_full(self, *, on: bool, spare_log: bool | None = None) -> None:
        """No file grows beyond a limit.

        Args:
            on: Or off again.
            spare_log: True: tables and indexes of 1 MiB get no new page, so inserts fail with an error and
                everything else goes on, as when only the volume of the tables is full; shorter tables feel
                nothing. False: the log cannot be written either: the next commit is a PANIC, and recovery
                fails as long as this lasts. None: True where a table is long enough to feel it.
        """
        cluster = self._postgres_engine.home / "cluster"
        if spare_log is None:
            spare_log = longest_bytes(cluster / "base") > LOG_SPARED_BYTES
        limit_bytes = LOG_SPARED_BYTES if spare_log else LOG_HIT_BYTES
        self._limit_files(["postgres"], limit_bytes if on else None)

    def _limit_files(self, names: Iterable[str], max_bytes: int | None) -> None:
        for name in names:
            if max_bytes is None:
                self._file_limits_bytes.pop(name, None)
            else:
                self._file_limits_bytes[name] = max_bytes
            self._apply_file_limit(name)

    def _apply_file_limit(self, name: str) -> None:
        """To the processes that run now; also after each start."""
        member = self._members[name]
        assert isinstance(member, EngineMember)
        options = member.engine.account.popen_options()
        limit_files(member.family(), self._file_limits_bytes.get(name), options)

    async def _started(self, name: str) -> None:
        """A server of this name was started again: what lasts befalls it, too."""
        if name in self._file_limits_bytes:
            self._apply_file_limit(name)

    def _redis(self) -> Redis:
        return open_redis(self.redis_url, max_connections=1)

    def _redis_engine(self, name: str) -> EmbeddedRedis:
        member = self._members[name]
        assert isinstance(member, EngineMember)
        assert isinstance(member.engine, EmbeddedRedis)
        return member.engine

    @property
    def _postgres_engine(self) -> EmbeddedPostgres:
        member = self._members["postgres"]
        assert isinstance(member, EngineMember)
        assert isinstance(member.engine, EmbeddedPostgres)
        return member.engine
