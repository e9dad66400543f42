"""Puts one API process together: connections, catalog, desk, lane, FastAPI app and their tasks."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, Self

import asyncpg
import structlog
from redis.asyncio import Redis

from couponsvc.api.app import create_app
from couponsvc.api.auth import Authenticator
from couponsvc.api.entrance import Entrance
from couponsvc.api.lane import GrabLane
from couponsvc.api.services import Services
from couponsvc.batch import metrics
from couponsvc.batch.desk import Desk
from couponsvc.gate.connection import GateConnection
from couponsvc.ledger.drops import DropMark, load_drops, mark_drops
from couponsvc.ledger.reading import find_by_requests
from couponsvc.programs.catalog import DropCatalog
from couponsvc.settings import Settings
from couponsvc.support.ending import end_tasks
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.sealing import MasterKey
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop
from couponsvc.values.voucher import StandingVoucher

log = structlog.get_logger("api")

POOL_MAX_COUNT: Final = 8
"""Postgres connections of one API process: look-ups and operators; the hot path uses none."""
GAUGE_EVERY_S: Final = 1.0

_queries = Queries("couponsvc.api", "blessing")


class ApiProcess:
    """Everything behind one listening socket. `open`, then serve `app` while `run` runs, then `close`."""

    def __init__(
        self,
        settings: Settings,
        pool: "asyncpg.Pool[asyncpg.Record]",
        redis: Redis,
        authenticator: Authenticator,
    ) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._redis_url: Final = settings.redis_url
        self._shard: Final = settings.shard
        self._authenticator: Final = authenticator
        self._gate: Final = GateConnection(settings.redis_url, self._read_blessing)
        self._catalog: Final = DropCatalog(self._load_drops, self._mark_drops, settings.shard)
        self._desk: Final = Desk(
            self._gate,
            self._look_up,
            shard=settings.shard,
            confirm_wait_ms=settings.confirm_wait_ms,
            backlog_max_count=settings.backlog_max_count,
        )
        services = Services(
            settings=settings,
            pool=pool,
            redis=redis,
            authenticator=authenticator,
            catalog=self._catalog,
            gate_closed_because=lambda: self._gate.closed_because,
        )
        self._event_waits: Final = services.event_waits
        entrance = Entrance(
            authenticator=authenticator,
            catalog=self._catalog,
            desk=self._desk,
            neighbour_hold_ms=settings.neighbour_hold_ms,
        )
        self.app: Final = GrabLane(create_app(services), entrance)

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Connect to Postgres and load the credentials; Redis may be away.

        Raises:
            OSError, asyncpg.PostgresError: Postgres cannot be reached.
        """
        pool = await open_pool(settings.postgres_dsn.get_secret_value(), max_size=POOL_MAX_COUNT)
        authenticator = Authenticator(pool, MasterKey.from_base64(settings.master_key.get_secret_value()))
        await authenticator.load()
        redis = open_redis(settings.redis_url)
        return cls(settings, pool, redis, authenticator)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep connections, definitions, keys and batches going until `stop`, then end them in order."""
        tasks = [
            _task(self._gate.run(stop), "gate"),
            _task(self._catalog.run(self._redis_url, stop), "catalog"),
            _task(self._authenticator.run(stop), "keys"),
            _task(self._desk.listen(self._redis_url), "confirmations"),
            _task(self._desk.run(), "desk"),
            _task(self._measure(), "gauges"),
            _task(self._event_waits.run(), "events"),
        ]
        waiting = _task(stop.wait(), "stop")
        try:
            done, _ = await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                if not stop.is_set():
                    task.result()  # raises what ended it
                    raise RuntimeError(f"task {task.get_name()} ended by itself")
        finally:
            await end_tasks(*tasks, waiting)

    def end_waits(self) -> None:
        """Let nobody wait for events any longer: answer what there is, end every stream."""
        self._event_waits.end()

    async def close(self) -> None:
        """Close every connection."""
        self._gate.close()
        await self._redis.aclose()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pool.close(), timeout=2)

    async def _read_blessing(self) -> ServerIdentity | None:
        row = await self._pool.fetchrow(_queries["read_blessing"], self._shard)
        return ServerIdentity(row["run_id"], row["replication_id"]) if row else None

    async def _load_drops(self, drop_ids: Sequence[str]) -> Sequence[Drop]:
        return await load_drops(self._pool, drop_ids)

    async def _mark_drops(self) -> Mapping[str, DropMark]:
        return await mark_drops(self._pool)

    async def _look_up(self, requests: Sequence[tuple[int, str]]) -> dict[tuple[int, str], StandingVoucher]:
        return await find_by_requests(self._pool, requests)

    async def _measure(self) -> None:
        while True:
            metrics.QUEUED.set(self._desk.queued_count)
            metrics.WAITING.set(self._desk.waiting_count)
            await asyncio.sleep(GAUGE_EVERY_S)


def _task(work: Coroutine[Any, Any, object], name: str) -> "asyncio.Task[object]":
    return asyncio.create_task(work, name=name)
