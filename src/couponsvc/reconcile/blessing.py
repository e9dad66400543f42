"""Checks a Redis server that nobody has checked yet, and says so in Postgres when it is sound.

Until then every API process refuses to decide by itself: it compares the server it connects to
with the row of `blessings`. So nothing is granted on the server while it is checked here, and
only drainers still change it, by acknowledging what was granted before.

One case is left to the continuous look on purpose. A drainer that holds grants of a lost server
in its memory may commit them after a check that found everything in agreement. Postgres then has
more than Redis noted; its constraints keep every promise, and the next look finds the drift.
"""

from time import monotonic
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.gate.loading import LoadIncomplete
from couponsvc.reconcile import metrics
from couponsvc.reconcile.examining import examine
from couponsvc.reconcile.identity import ServerIdentity, read_identity, write_blessing
from couponsvc.reconcile.rebuild import Overtaken, open_new_drop, rebuild
from couponsvc.reconcile.snapshot import Pool, read_ledger
from couponsvc.support import logs
from couponsvc.support.kill_points import kill_point
from couponsvc.values import keys

ATTEMPTS_MAX_COUNT: Final = 3
"""How often a drop is examined again because another reconciler was at it."""

_BEFORE_BLESSING: Final = kill_point("bless.before_blessing")
_AFTER_BLESSING: Final = kill_point("bless.after_blessing")

log = logs.get("reconcile")


class ServerChanged(Exception):
    """The server was replaced, or another one blessed, during the check; it begins again."""


class Blessed:
    """What a check did, by number of drops."""

    def __init__(self) -> None:
        self.sound_count = 0
        self.loaded_count = 0
        self.rebuilt_count = 0
        self.closed_count = 0


async def bless_server(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    shard: int,
    server: ServerIdentity,
    previous: ServerIdentity | None,
) -> Blessed:
    """Examine every drop of the shard, rebuild what is wrong, then bless the server.

    Args:
        pool: Of the ledger.
        redis: The shard's server; its connections are opened anew first.
        shard: Which.
        server: Who it said it is, before anything was examined.
        previous: Who was blessed when the check began; None: nobody ever.

    Raises:
        ServerChanged: begin again.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked; nothing was blessed.
    """
    began = monotonic()
    await redis.connection_pool.disconnect()  # none may lead to the server before
    check = _Check(pool, redis, shard, began + limits.DRAIN_PATIENCE_MS / 1000, previous is None)
    done = Blessed()
    drop_nos = [side.drop.drop_no for side in await read_ledger(pool, shard)]
    for drop_no in drop_nos:
        await _admit(check, drop_no, done)
    if await read_identity(redis) != server:
        raise ServerChanged("the Redis server was replaced during its check")
    _BEFORE_BLESSING()
    if not await write_blessing(pool, shard, server, previous):
        raise ServerChanged("another Redis server was blessed during the check")
    _AFTER_BLESSING()
    for drop_no in drop_nos:
        await redis.publish(keys.control_channel(shard), str(drop_no))
    closed_s = monotonic() - began
    metrics.BLESSING_SECONDS.observe(closed_s)
    log.info("redis server blessed", run_id=server.run_id, closed_s=round(closed_s, 3), **vars(done))
    return done


class _Check(NamedTuple):
    """What is the same for every drop of one check."""

    pool: "Pool[asyncpg.Record]"
    redis: Redis
    shard: int
    give_up_at: float
    first_ever: bool


async def _admit(check: _Check, drop_no: int, done: Blessed) -> None:
    """Leave one drop sound on the server, or closed."""
    pool, redis, shard, give_up_at, first_ever = check
    for _ in range(ATTEMPTS_MAX_COUNT):
        examination = await examine(pool, redis, shard, drop_no, give_up_at, mend=True)
        if not examination.findings:
            done.sound_count += 1
            return
        drop, published = examination.look.ledger.drop, examination.look.after.published
        if first_ever and examination.look.never_open:
            if await open_new_drop(pool, redis, drop):
                done.loaded_count += 1
                return
            continue
        for finding in examination.findings:
            log.warning("drop does not agree", drop_id=drop.drop_id, kind=finding.kind, detail=finding.detail)
        try:
            await rebuild(pool, redis, drop, published)
        except Overtaken:
            continue
        except LoadIncomplete as error:  # one broken drop stays closed; the others need not
            log.error("drop stays closed", drop_id=drop.drop_id, reason=str(error))  # noqa: TRY400 - a trace adds nothing
            done.closed_count += 1
            return
        done.rebuilt_count += 1
        return
    raise ServerChanged(f"drop {drop_no} is being rebuilt by another reconciler")
