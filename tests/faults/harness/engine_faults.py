"""What can befall the servers beside dying: lost data, full disks, no memory, forgotten scripts."""

import asyncio
import os
import shutil
import signal
from typing import Final

from redis.asyncio import Redis

from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.support.redis_client import open_redis
from tests.faults.harness.members import EngineMember
from tests.faults.harness.supervised import Supervised
from tests.faults.rush import copy_owned
from tests.servers import wait_until_gone

APPEND_ONLY: Final = "appendonlydir"
COPY: Final = "appendonlydir.copy"
STOP_PATIENCE_S: Final = 10.0
TINY_MEMORY_BYTES: Final = 1
"""Below what an empty server takes: every command that needs memory is refused."""


class EngineFaults(Supervised):
    """Faults of Redis hit whichever server is the primary now; `primary` names it."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = "redis"

    @property
    def redis_url(self) -> str:
        """Of the primary, past all proxies."""
        return self._redis_engine(self.primary).url

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
