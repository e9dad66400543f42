"""Refuses servers whose settings can lose or forget data, and names the setting to change."""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from redis.asyncio import Redis
from redis.exceptions import ResponseError

REDIS_VERSION_MIN: Final = (7, 0)
"""Scripts use commands of 7.0; older ones also keep scripts differently over a restart."""
POSTGRES_VERSION_MIN: Final = 15
DURABLE_COMMITS: Final = frozenset({"on", "remote_write", "remote_apply"})
"""Values of synchronous_commit that wait for the disk at least."""

log = structlog.get_logger("servers")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
"""One of its own, or one borrowed from a pool."""


class UnsafeServer(Exception):
    """A server may lose what it was told to keep; the message names each setting and its cure."""


async def refuse_unsafe(redis: Redis, connection: Connection, *, allow: bool = False) -> None:
    """Check both servers before anything relies on them.

    Args:
        redis: The gate's server.
        connection: To the ledger, with the session settings that commits will have.
        allow: Only warn (`COUPONSVC_UNSAFE_SERVERS`, for tests).

    Raises:
        UnsafeServer: names every unsafe setting of both servers.
        OSError, asyncpg.PostgresError, redis.exceptions.RedisError: one cannot be asked.
    """
    faults = [*await _redis_faults(redis), *await _postgres_faults(connection)]
    if not faults:
        return
    if not allow:
        raise UnsafeServer("; ".join(faults))
    for fault in faults:
        log.warning("unsafe server allowed", fault=fault)


async def server_versions(redis: Redis, connection: Connection) -> dict[str, str]:
    """What runs behind this service, for people: `{"redis": "valkey 9.1.2", "postgres": "18.6"}`.

    Raises:
        OSError, asyncpg.PostgresError, redis.exceptions.RedisError: one cannot be asked.
    """
    facts = await redis.info("server")
    name = str(facts.get("server_name", "redis"))
    version = facts.get(
        f"{name}_version", facts["redis_version"]
    )  # valkey keeps redis_version for old clients
    postgres = await connection.fetchval("SHOW server_version")
    return {"redis": f"{name} {version}", "postgres": str(postgres)}


async def _redis_faults(redis: Redis) -> list[str]:
    faults = []
    facts: dict[str, Any] = {}
    for section in ("server", "memory", "persistence"):
        facts |= await redis.info(section)
    version = str(facts["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_VERSION_MIN:
        faults.append(f"Redis is version {version}: use 7.0 or later, or Valkey")
    settings = await _redis_settings(redis)
    policy = settings.get("maxmemory-policy", facts.get("maxmemory_policy"))
    if policy != "noeviction":
        faults.append(f"Redis has maxmemory-policy {policy}: set it to noeviction, or stock is evicted")
    appends = settings.get("appendonly") == "yes" or bool(facts.get("aof_enabled"))
    if appends and settings.get("no-appendfsync-on-rewrite", "no") != "no":
        faults.append(
            "Redis has no-appendfsync-on-rewrite yes: set it to no, or grants of a whole rewrite are lost"
        )
    return faults


async def _redis_settings(redis: Redis) -> Mapping[str, str]:
    """Settings by CONFIG; none where a managed server forbids it."""
    try:
        found = await redis.config_get("maxmemory-policy", "appendonly", "no-appendfsync-on-rewrite")
    except ResponseError as error:  # unknown command or no permission
        log.warning(
            "redis settings cannot be read",
            reason=str(error),
            consequence="only maxmemory-policy is checked, by INFO; see that no-appendfsync-on-rewrite is no",
        )
        return {}
    return {str(name): str(value) for name, value in found.items()}


async def _postgres_faults(connection: Connection) -> list[str]:
    faults = []
    version = connection.get_server_version()
    if version.major < POSTGRES_VERSION_MIN:
        faults.append(f"Postgres is version {version.major}: use {POSTGRES_VERSION_MIN} or later")
    durable = await connection.fetchval("SHOW synchronous_commit")
    if durable not in DURABLE_COMMITS:
        faults.append(
            f"Postgres has synchronous_commit {durable}: set it to on, or confirmed vouchers are lost"
        )
    faults += [
        f"Postgres has {setting} off: set it to on, or a power cut loses vouchers"
        for setting in ("fsync", "full_page_writes")
        if await connection.fetchval("SELECT current_setting($1)", setting) != "on"
    ]
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        faults.append("Postgres is a read replica (in recovery): set COUPONSVC_POSTGRES_DSN to the primary")
    return faults
