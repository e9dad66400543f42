"""Which Redis server is this, and is it the one that was checked last?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.reconcile.snapshot import QUERIES, Pool


class ServerIdentity(NamedTuple):
    """A server process and the history of its data; a restart or failover changes one or both."""

    run_id: str
    replication_id: str


class NotMaster(Exception):
    """The server is a replica: it may be behind, and must never be blessed."""


async def read_identity(redis: Redis) -> ServerIdentity:
    """Ask the server who it is.

    Raises:
        NotMaster: it is a replica.
        redis.exceptions.RedisError: it cannot be asked.
    """
    return require_master(await redis.info("server", "replication"))


def require_master(facts: Mapping[str, Any]) -> ServerIdentity:
    """Read `run_id`, `role` and `master_replid` of what a server says of itself (INFO).

    Raises:
        NotMaster: it is a replica.
    """
    if facts["role"] != "master":
        raise NotMaster(f"the Redis server with run id {facts['run_id']} is a {facts['role']}")
    return ServerIdentity(str(facts["run_id"]), str(facts["master_replid"]))


async def read_blessing(pool: "Pool[asyncpg.Record]", shard: int) -> ServerIdentity | None:
    """The server of a shard that was checked last; None before the first check.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    row = await pool.fetchrow(QUERIES["read_blessing"], shard)
    return ServerIdentity(*row) if row else None


async def write_blessing(
    pool: "Pool[asyncpg.Record]", shard: int, server: ServerIdentity, previous: ServerIdentity | None
) -> bool:
    """Say that `server` was checked; False where another server was blessed since `previous` was read.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    if previous is None:
        blessed = await pool.fetchval(QUERIES["bless_first"], shard, *server)
    else:
        blessed = await pool.fetchval(QUERIES["bless_next"], shard, *server, *previous)
    return blessed is not None
