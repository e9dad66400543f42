"""Servers with a past, and what a restart of Redis does to them.

The check runs in this process, as the reconciler runs it in its own. It begins when the new server
answers: how long Redis reads its append-only file is not ours to shorten.
"""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter, process_time
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from bench.cpu import read_processes
from bench.scale.past import PastDrop
from bench.scale.seeding import seed
from couponsvc.engines.account import Account
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.ledger.migrate import migrate
from couponsvc.programs.admission import create_partner
from couponsvc.reconcile.blessing import bless_server
from couponsvc.reconcile.check import check
from couponsvc.reconcile.identity import read_blessing, read_identity
from couponsvc.reconcile.reconciler import POSTGRES_CONNECTIONS
from couponsvc.reconcile.snapshot import read_ledger
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.sealing import MasterKey
from couponsvc.values import keys

PARTNER_ID: Final = "bank-a"
PROGRAM_ID: Final = "qingdao-2022"
OPENED_AT: Final = datetime(2026, 10, 7, 2, tzinfo=UTC)
SHARD: Final = 0
US_PER_S: Final = 1e6


class Closed(NamedTuple):
    """What one restart cost."""

    sound_s: float
    """Until the server was blessed: sound drops were open again."""
    all_s: float
    """Until every drop was."""
    rebuilt: int
    cpu_s: dict[str, float]
    """By process: reconciler, postgres, redis."""

    def describe(self) -> str:
        """Both times and the CPU, in one line."""
        cpu = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.cpu_s.items())
        return (
            f"blessed after {self.sound_s:.2f} s, {self.rebuilt} drops loaded, the last one open after"
            f" {self.all_s:.2f} s; CPU s: {cpu}"
        )


class Drifted(Exception):
    """After a restart Redis does not agree with Postgres; the figures mean nothing."""


class Ground:
    """Engines with a seeded ledger whose holders are loaded."""

    def __init__(self, redis: EmbeddedRedis, postgres: EmbeddedPostgres) -> None:
        self._engine: Final = redis
        self._postgres: Final = postgres

    async def restart(self, *, keep_data: bool, lose: Sequence[str] = ()) -> Closed:
        """Restart Redis, have it checked and mended, and compare every holder afterwards.

        Args:
            keep_data: Whether it comes back with its append-only file.
            lose: Drops whose state is taken away on top, before anybody looks.

        Raises:
            Drifted: it was not mended.
        """
        self._engine.kill()
        if not keep_data:
            shutil.rmtree(self._engine.home / "appendonlydir")
        await self._engine.start_async()
        redis = open_redis(self._engine.url)
        await redis.ping()  # answers when the append-only file is read
        pool = await open_pool(self._postgres.dsn, max_size=POSTGRES_CONNECTIONS)
        for drop_id in lose:
            no = await pool.fetchval("SELECT drop_no FROM drops WHERE drop_id = $1", drop_id)
            (lost,) = await read_ledger(pool, SHARD, [no])
            await redis.delete(keys.state_key(SHARD, no, lost.drop.epoch))
        try:
            closed = await self._measure(pool, redis)
            wrong = [line for line in await check(pool, redis) if line.findings]
        finally:
            await redis.aclose()
            pool.terminate()
        if wrong:
            raise Drifted(f"{wrong[0].drop_id}: {wrong[0].findings}")
        return closed

    async def _measure(self, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> Closed:
        server, previous = await read_identity(redis), await read_blessing(pool, SHARD)
        before, began_at = self._cpu_s(), await pool.fetchval("SELECT clock_timestamp()")
        began = perf_counter()
        done = await bless_server(pool, redis, SHARD, server, previous)
        all_s = perf_counter() - began
        after = self._cpu_s()
        blessed_at = await pool.fetchval("SELECT blessed_at FROM blessings WHERE shard = $1", SHARD)
        cpu_s = {name: after[name] - before[name] for name in before}
        return Closed((blessed_at - began_at).total_seconds(), all_s, done.rebuilt_count, cpu_s)

    def _cpu_s(self) -> dict[str, float]:
        processes = read_processes()
        postmaster, redis = self._postgres.pid or 0, self._engine.pid or 0
        postgres = processes[postmaster].cpu_us + processes[postmaster].ended_children_us
        postgres += sum(process.cpu_us for process in processes.values() if process.parent == postmaster)
        return {
            "reconciler": process_time(),
            "postgres": postgres / US_PER_S,
            "redis": processes[redis].cpu_us / US_PER_S,
        }


@asynccontextmanager
async def prepared(quantities: Sequence[int]) -> AsyncIterator[Ground]:
    """Engines whose ledger has one sold-out drop of each quantity, named `drop-0000` and so on."""
    base = Path(mkdtemp(prefix="couponsvc-bench-"))
    base.chmod(0o711)
    data_dir = make_data_dir(base / "data", Account.current())
    redis, postgres = EmbeddedRedis(data_dir), EmbeddedPostgres(data_dir)
    try:
        await redis.start_async()
        await postgres.start_async()
        await migrate(postgres.dsn)
        master_key = MasterKey.generate()
        pool = await open_pool(postgres.dsn, max_size=1)
        await create_partner(pool, "bench", PARTNER_ID, PARTNER_ID)
        await pool.close()
        past = [
            PastDrop(PROGRAM_ID, f"drop-{place:04d}", OPENED_AT, quantity)
            for place, quantity in enumerate(quantities)
        ]
        await seed(postgres.dsn, master_key, past, PARTNER_ID)
        yield Ground(redis, postgres)
    finally:
        redis.kill()
        postgres.kill()
        shutil.rmtree(base)
