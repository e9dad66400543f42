"""Engines for the alternatives: the same launcher and the same settings as `couponsvc up`.

Postgres is one server with a database for each contender. Redis is a server for each, all of one
binary and one set of settings: contenders are interleaved and all alive at once, so an
empty one cannot be had by emptying the one of the contender before.
"""

from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import asyncpg

from bench.contender import Contender, Engines
from couponsvc.engines.account import Account
from couponsvc.engines.engine import EmbeddedEngine
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis

NO_SERVER: Final = ""
NO_PROCESS: Final = 0
"""What a contender is given in place of an engine that it does not use."""


class EnginePool:
    """Starts engines as contenders ask for them; a context that stops them all.

    Args:
        directory: Where their data go; the engines' account must be able to enter it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory: Final = directory
        self._stack: Final = AsyncExitStack()
        self._postgres: EmbeddedPostgres | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def engines_for(self, contender: Contender) -> Engines:
        """Empty engines for a contender: those that it says it uses, nothing for the others.

        Raises:
            EngineError: a server does not start.
        """
        redis_url, redis_pid, dsn, postgres_pid = NO_SERVER, NO_PROCESS, NO_SERVER, NO_PROCESS
        if contender.uses_redis:
            redis = EmbeddedRedis(self._data_dir(contender.name))
            await self._start(redis)
            redis_url, redis_pid = redis.url, redis.pid or NO_PROCESS
        if contender.uses_postgres:
            if self._postgres is None:
                postgres = EmbeddedPostgres(self._data_dir("shared"))
                await self._start(postgres)
                self._postgres = postgres
            dsn = await _new_database(self._postgres, contender.name)
            postgres_pid = self._postgres.pid or NO_PROCESS
        return Engines(redis_url, redis_pid, dsn, postgres_pid)

    def _data_dir(self, name: str) -> Path:
        return make_data_dir(self._directory / name, Account.current())

    async def _start(self, engine: EmbeddedEngine) -> None:
        self._stack.push_async_callback(engine.stop_async)
        await engine.start_async()


async def _new_database(server: EmbeddedPostgres, contender_name: str) -> str:
    """Make an empty database; its DSN."""
    name = "bench_" + contender_name.replace("-", "_")
    connection = await asyncpg.connect(server.maintenance_dsn)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return server.dsn_of(name)
