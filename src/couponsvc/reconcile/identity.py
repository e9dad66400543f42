"""Which Redis server is this, and is it the one that was checked last?"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from couponsvc.reconcile.snapshot import QUERIES, Pool

INFO_COMMAND: Final = ("INFO", "server", "replication")
"""Several sections at once: since 7.0."""
_FACT: Final = re.compile(rb"^(run_id|role|master_replid):(.*?)\r?$", re.MULTILINE)


class ServerIdentity(NamedTuple):
    """A server process and the history of its data; a restart or failover changes one or both."""

    run_id: str
    replication_id: str


class NotMaster(Exception):
    """The server is a replica: it may be behind, and must never be blessed."""


class WrongServer(RedisError):
    """A new connection leads to another server than the one that was asked who it is."""


async def read_identity(redis: Redis) -> ServerIdentity:
    """Ask the server who it is.

    Raises:
        NotMaster: it is a replica.
        redis.exceptions.RedisError: it cannot be asked.
    """
    return _require_master(await redis.info("server", "replication"))


async def require_server(connection: AbstractConnection, expected: ServerIdentity | None) -> None:
    """Introduce ourselves on a new connection, and go no further where another server answers.

    For `redis_connect_func`: a check that took half of what it saw from another server, because the
    address was moved meanwhile, would bless what nobody looked at.

    Raises:
        WrongServer: as said; None expects nobody in particular.
        redis.exceptions.RedisError: it cannot be asked.
    """
    await connection.on_connect()
    if expected is None:
        return
    await connection.send_command(*INFO_COMMAND)
    text: bytes = await connection.read_response(disable_decoding=True)
    try:
        found = identity_of(text)
    except NotMaster as error:
        raise WrongServer(str(error)) from error
    if found != expected:
        raise WrongServer(f"the Redis server with run id {found.run_id} answers now")


def identity_of(text: bytes) -> ServerIdentity:
    """Read what a server answered to `INFO_COMMAND`.

    Raises:
        NotMaster: it is a replica.
    """
    return _require_master({name.decode(): value.decode() for name, value in _FACT.findall(text)})


def _require_master(facts: Mapping[str, Any]) -> ServerIdentity:
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
