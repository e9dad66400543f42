"""Which Redis server is this, and is it the one that was checked last?"""

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from couponsvc.reconcile.snapshot import QUERIES, Pool
from couponsvc.support.server_identity import (
    INFO_COMMAND,
    NotMaster,
    ServerIdentity,
    identity_of,
    identity_of_master,
)


class WrongServer(RedisError):
    """A new connection leads to another server than the one that was asked who it is."""


async def read_identity(redis: Redis) -> ServerIdentity:
    """Ask the server who it is.

    Raises:
        NotMaster: it is a replica.
        redis.exceptions.RedisError: it cannot be asked.
    """
    return identity_of_master(await redis.info("server", "replication"))


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


async def read_blessing(pool: "Pool[asyncpg.Record]", shard: int) -> ServerIdentity | None:
    """The server of a shard that was checked last; None before the first check.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    row = await pool.fetchrow(QUERIES["read_blessing"], shard)
    return ServerIdentity(*row) if row else None


async def begin_check(
    pool: "Pool[asyncpg.Record]", shard: int, server: ServerIdentity, previous: ServerIdentity
) -> bool:
    """Say that `server` is being checked; False where another one was blessed since `previous` was read.

    Waits for every commit under way: from now on no grant is committed but those read from `server`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    return await pool.fetchval(QUERIES["begin_check"], shard, *server, *previous) is not None


async def end_check(pool: "Pool[asyncpg.Record]", shard: int) -> None:
    """Say that no server is being checked: the blessed one answers, and its grants may be committed again.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    await pool.execute(QUERIES["end_check"], shard)


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
