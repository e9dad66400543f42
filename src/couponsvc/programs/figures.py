"""What a drop looks like from outside: its state, and where its units are.

Postgres is read before Redis. Between the two reads units may only move from pending to issued
or back to available, so `quantity - available - issued` of those two moments is never negative,
and the three figures always add up to the quantity the gate works with.
"""

from dataclasses import dataclass

from redis.asyncio import Redis

from couponsvc.programs.definitions import Pool, StandingDrop
from couponsvc.support.sql import Queries
from couponsvc.values import keys
from couponsvc.values.drop import Drop, DropState, DropStatus

SQL = Queries("couponsvc.programs", "figures")


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which Redis server answers."""

    run_id: str
    replication_id: str
    version: str


@dataclass(frozen=True, slots=True)
class Figures:
    """State and counters of a drop at one moment, as far as they can be known."""

    state: DropState
    available: int
    """0 while the drop is not loaded: nothing can be granted then."""
    pending: int
    issued: int


async def read_figures(pool: Pool, redis: Redis, standing: StandingDrop) -> Figures:
    """Read a drop's figures; `standing` was read from Postgres just before.

    A drop that is not loaded, or lies on a Redis server that was not checked yet, is
    `rebuilding` with nothing available.

    Raises:
        redis.exceptions.RedisError, OSError: the server cannot be reached.
        asyncpg.PostgresError, OSError: Postgres cannot be reached.
    """
    drop = standing.drop
    async with redis.pipeline(transaction=True) as pipe:
        pipe.info("server")
        pipe.info("replication")
        pipe.time()
        pipe.hget(keys.shard_key(drop.shard), keys.epoch_field(drop.drop_no))
        pipe.hmget(keys.state_key(drop.shard, drop.drop_no, drop.epoch), ["available", "quantity"])
        server, replication, (seconds, microseconds), epoch, state = await pipe.execute()
    now_ms = seconds * 1_000 + microseconds // 1_000
    loaded = epoch == str(drop.epoch).encode() and None not in state
    blessed = await is_blessed(pool, drop.shard, identify(server, replication))
    if not (loaded and blessed):
        return Figures(_state(drop, now_ms, loaded=False, exhausted=False), 0, 0, standing.issued)
    available, quantity = int(state[0]), int(state[1])
    pending = max(0, quantity - available - standing.issued)
    exhausted = available == 0 and standing.issued >= drop.quantity
    return Figures(
        _state(drop, now_ms, loaded=True, exhausted=exhausted), available, pending, standing.issued
    )


async def is_blessed(pool: Pool, shard: int, identity: ServerIdentity) -> bool:
    """Whether this server is the one that was checked last."""
    row = await pool.fetchrow(SQL["read_blessing"], shard)
    return row is not None and tuple(row) == (identity.run_id, identity.replication_id)


def identify(server: dict[str, object], replication: dict[str, object]) -> ServerIdentity:
    """Read the answers of `INFO server` and `INFO replication`."""
    version = server.get("valkey_version") or server.get("redis_version")
    name = "valkey" if "valkey_version" in server else "redis"
    return ServerIdentity(str(server["run_id"]), str(replication["master_replid"]), f"{name} {version}")


def _state(drop: Drop, now_ms: int, *, loaded: bool, exhausted: bool) -> DropState:
    if drop.status is DropStatus.CLOSED:
        return DropState.CLOSED
    if not loaded:
        return DropState.REBUILDING
    if drop.status is DropStatus.PAUSED:
        return DropState.PAUSED
    if now_ms >= drop.closes_ms:
        return DropState.ENDED
    if now_ms < drop.opens_ms:
        return DropState.SCHEDULED
    return DropState.SOLD_OUT if exhausted else DropState.OPEN
