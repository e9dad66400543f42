"""Puts a drop into Redis again from Postgres, under a higher epoch.

The order carries the proof. Raising the epoch in Postgres comes first: from that commit on
every grant of an older epoch is refused, so the drop's vouchers stand still and may be read
without a lock. Loading touches keys of the new epoch only. Publishing is a compare-and-set.
A reconciler that is paused anywhere in between, for however long, is refused at the end.
"""

from contextlib import aclosing
from time import monotonic
from typing import Final

import asyncpg
from redis.asyncio import Redis

from couponsvc.gate.definition import DefinitionResult, apply_definition
from couponsvc.gate.loading import LoadRefused, fence_drop, load_epoch, publish_new_drop, unload_epoch
from couponsvc.reconcile import metrics
from couponsvc.reconcile.holders import stream_holders
from couponsvc.reconcile.snapshot import QUERIES, LedgerSide, Pool, read_ledger
from couponsvc.support import logs
from couponsvc.support.kill_points import kill_point
from couponsvc.values.drop import Drop

OLD_EPOCHS_COUNT: Final = 8
"""Older epochs whose keys are removed after a rebuild: the last one, and what loaders left that
died before they could publish."""

_BEFORE_RAISE: Final = kill_point("rebuild.before_raise")
_AFTER_RAISE: Final = kill_point("rebuild.after_raise")
_AFTER_FENCE: Final = kill_point("rebuild.after_fence")
_AFTER_PUBLISH: Final = kill_point("rebuild.after_publish")
_AFTER_UNLOAD: Final = kill_point("rebuild.after_unload")

log = logs.get("reconcile")


class Overtaken(Exception):
    """Another reconciler raised the drop's epoch meanwhile; look again."""


async def open_new_drop(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop) -> bool:
    """Load a drop of which nothing was ever issued and that was never open; False: it is open.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked; trying again is safe.
    """
    opened = await publish_new_drop(redis, drop)
    await apply_newer_definition(pool, redis, drop)
    return opened


async def rebuild(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop, published: int) -> int:
    """Close a drop, load it from Postgres under a new epoch, and open it; the new epoch.

    Args:
        pool: Of the ledger.
        redis: The shard's server.
        drop: As it was read when it was found wanting.
        published: The epoch that Redis had, of either sign; 0 for none.

    Raises:
        Overtaken: the epoch moved on before or during the rebuild.
        couponsvc.gate.loading.LoadIncomplete: Postgres has other than `issued` vouchers; the
            drop stays closed.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked; the drop stays closed until a later rebuild.
    """
    began = monotonic()
    raised = await raise_epoch(pool, redis, drop, published)
    await load_raised(pool, redis, raised)
    closed_s = monotonic() - began
    metrics.REBUILDS.labels(drop.drop_id).inc()
    metrics.REBUILD_CLOSED_SECONDS.observe(closed_s)
    log.warning(
        "drop rebuilt", drop_id=drop.drop_id, epoch=raised.drop.epoch, issued=raised.issued,
        closed_s=round(closed_s, 3),
    )  # fmt: skip
    return raised.drop.epoch


async def raise_epoch(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop, published: int) -> LedgerSide:
    """Close the drop's epoch for ever, in Postgres and then in Redis; the drop as it stands then.

    Raises:
        Overtaken: somebody else raised it first.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    _BEFORE_RAISE()
    epoch: int | None = await pool.fetchval(QUERIES["raise_epoch"], drop.drop_no, drop.epoch, abs(published))
    _AFTER_RAISE()
    if epoch is None:
        raise Overtaken(f"drop {drop.drop_id}: epoch {drop.epoch} was raised by another reconciler")
    raised = (await read_ledger(pool, drop.shard, [drop.drop_no]))[0]
    if raised.drop.epoch != epoch:
        raise Overtaken(f"drop {drop.drop_id}: epoch {epoch} was raised by another reconciler")
    await fence_drop(redis, raised.drop)
    _AFTER_FENCE()
    return raised


async def load_raised(pool: "Pool[asyncpg.Record]", redis: Redis, raised: LedgerSide) -> None:
    """Load and open a drop whose epoch was raised, then catch up and tidy up.

    Raises:
        Overtaken: a newer epoch is open.
        couponsvc.gate.loading.LoadIncomplete: see `rebuild`.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    drop = raised.drop
    try:
        async with aclosing(stream_holders(pool, drop.drop_no)) as rows:
            await load_epoch(redis, drop, raised.issued, rows)
    except LoadRefused as error:
        raise Overtaken(str(error)) from error
    _AFTER_PUBLISH()
    await apply_newer_definition(pool, redis, drop)
    for epoch in range(max(1, drop.epoch - OLD_EPOCHS_COUNT), drop.epoch):
        await unload_epoch(redis, drop.shard, drop.drop_no, epoch)
    _AFTER_UNLOAD()


async def apply_newer_definition(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop) -> DefinitionResult:
    """Apply what an operator has changed since `drop` was read.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    newest = (await read_ledger(pool, drop.shard, [drop.drop_no]))[0].drop
    if newest.version == drop.version:
        return DefinitionResult.ALREADY
    return await apply_definition(redis, newest)
