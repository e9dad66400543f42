"""Puts drops into Redis again from Postgres, each under a higher epoch.

The order carries the proof. Raising the epoch in Postgres comes first: from that commit on
every grant of an older epoch is refused, so the drop's vouchers stand still and may be read
without a lock. Loading touches keys of the new epoch only. Publishing is a compare-and-set.
A reconciler that is paused anywhere in between, for however long, is refused at the end.

Many drops go the same way together, because after Redis was lost there are thousands: raised in
one statement, then loaded in groups, those first that people are waiting for.
"""

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from time import monotonic, time
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.gate.definition import apply_definition
from couponsvc.gate.loading import (
    LoadIncomplete,
    PublishResult,
    fence_drops,
    load_epochs,
    publish_new_drops,
    unload_epochs,
)
from couponsvc.reconcile import metrics
from couponsvc.reconcile.holders import stream_holders
from couponsvc.reconcile.snapshot import QUERIES, LedgerSide, Pool, read_ledger
from couponsvc.support import logs
from couponsvc.support.kill_points import kill_point
from couponsvc.values.drop import Drop, DropStatus

OLD_EPOCHS_COUNT: Final = 8
"""Older epochs whose keys are removed after a rebuild: the last one, and what loaders left that
died before they could publish."""
GROUP_VOUCHERS_COUNT: Final = 20_000
"""Vouchers of drops that are loaded together and open together: 50 ms. A larger drop goes by itself."""

_BEFORE_RAISE: Final = kill_point("rebuild.before_raise")
_AFTER_RAISE: Final = kill_point("rebuild.after_raise")
_AFTER_FENCE: Final = kill_point("rebuild.after_fence")
_AFTER_PUBLISH: Final = kill_point("rebuild.after_publish")
_AFTER_UNLOAD: Final = kill_point("rebuild.after_unload")

log = logs.get("reconcile")


class Overtaken(Exception):
    """Another reconciler raised the drop's epoch meanwhile; look again."""


class Lost(NamedTuple):
    """A drop that is to be loaded again."""

    drop: Drop
    """As it was read when it was found wanting."""
    published: int
    """The epoch that Redis had, of either sign; 0 for none."""


async def open_new_drops(pool: "Pool[asyncpg.Record]", redis: Redis, drops: Sequence[Drop]) -> list[bool]:
    """Load drops of which nothing was ever issued and that were never open; False: it is open.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked; trying again is safe.
    """
    opened = []
    for first in range(0, len(drops), limits.BATCH_DROPS_MAX_COUNT):
        some = drops[first : first + limits.BATCH_DROPS_MAX_COUNT]
        opened += await publish_new_drops(redis, some)
        await apply_newer_definitions(pool, redis, some)
    return opened


async def rebuild(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop, published: int) -> int:
    """Close a drop, load it from Postgres under a new epoch, and open it; the new epoch.

    Args:
        pool: Of the ledger.
        redis: The shard's server.
        drop: See `Lost`.
        published: See `Lost`.

    Raises:
        Overtaken: the epoch moved on before or during the rebuild.
        couponsvc.gate.loading.LoadIncomplete: Postgres has other than `issued` vouchers; the
            drop stays closed.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked; the drop stays closed until a later rebuild.
    """
    raised = await raise_epoch(pool, redis, drop, published)
    await load_raised(pool, redis, raised)
    return raised.drop.epoch


async def raise_epoch(pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop, published: int) -> LedgerSide:
    """Raise the epoch of one drop. See `raise_epochs`.

    Raises:
        Overtaken: somebody else raised it first.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    raised = await raise_epochs(pool, redis, [Lost(drop, published)])
    if not raised:
        raise Overtaken(f"drop {drop.drop_id}: epoch {drop.epoch} was raised by another reconciler")
    return raised[0]


async def raise_epochs(pool: "Pool[asyncpg.Record]", redis: Redis, lost: Sequence[Lost]) -> list[LedgerSide]:
    """Close the epochs of drops of one shard for ever, in Postgres and then in Redis.

    Returns:
        The drops as they stand then, whose vouchers stand still; without those whose epoch somebody
        else raised.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    if not lost:
        return []
    _BEFORE_RAISE()
    rows = await pool.fetch(
        QUERIES["raise_epochs"],
        [drop.drop_no for drop, _ in lost],
        [drop.epoch for drop, _ in lost],
        [abs(published) for _, published in lost],
    )
    _AFTER_RAISE()
    epochs = {row["drop_no"]: row["epoch"] for row in rows}
    now = await read_ledger(pool, lost[0].drop.shard, epochs)
    raised = [side for side in now if side.drop.epoch == epochs[side.drop.drop_no]]
    await fence_drops(redis, [side.drop for side in raised])
    _AFTER_FENCE()
    return raised


async def load_raised(pool: "Pool[asyncpg.Record]", redis: Redis, raised: LedgerSide) -> None:
    """Load and open one drop whose epoch was raised. See `load_all_raised`.

    Raises:
        Overtaken: a newer epoch is open.
        couponsvc.gate.loading.LoadIncomplete: see `rebuild`.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    drop = raised.drop
    (result,) = await load_all_raised(pool, redis, [raised], monotonic())
    if result is PublishResult.REFUSED:
        raise Overtaken(f"drop {drop.drop_id}: epoch {drop.epoch} or a newer one is open already")
    if result is PublishResult.OUTDATED:
        raise Overtaken(f"drop {drop.drop_id}: an operator has changed it meanwhile")
    if result is PublishResult.INCOMPLETE:
        raise LoadIncomplete(f"drop {drop.drop_id}: Postgres does not have the {raised.issued} it has issued")


async def load_all_raised(
    pool: "Pool[asyncpg.Record]", redis: Redis, raised: Sequence[LedgerSide], began: float
) -> list[PublishResult]:
    """Load and open drops of one shard whose epochs were raised, catch up and tidy up.

    Those whose window is open come first, and of these the small ones.

    Args:
        pool: Of the ledger.
        redis: The shard's server.
        raised: As `raise_epochs` returned them.
        began: When they were closed, by `time.monotonic`; for the metrics.

    Returns:
        What became of each, same order.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    results: dict[int, PublishResult] = {}
    for group in _groups(sorted(raised, key=_urgency)):
        async with aclosing(stream_holders(pool, group)) as portions:
            done = await load_epochs(redis, group, portions)
        _AFTER_PUBLISH()
        for side, result in zip(group, done, strict=True):
            results[side.drop.drop_no] = result
            _tell(side, result, monotonic() - began)
        drops = [side.drop for side in group]
        await apply_newer_definitions(pool, redis, drops)
        await unload_epochs(redis, drops[0].shard, [old for drop in drops for old in _older_epochs(drop)])
        _AFTER_UNLOAD()
    return [results[side.drop.drop_no] for side in raised]


async def apply_newer_definitions(pool: "Pool[asyncpg.Record]", redis: Redis, drops: Sequence[Drop]) -> None:
    """Apply what operators have changed since `drops` were read.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: see `rebuild`.
    """
    versions = {drop.drop_no: drop.version for drop in drops}
    for side in await read_ledger(pool, drops[0].shard, versions):
        if side.drop.version != versions[side.drop.drop_no]:
            await apply_definition(redis, side.drop)


def _urgency(side: LedgerSide) -> tuple[bool, int]:
    """What sorts first is loaded first. Our clock decides about the order only."""
    drop = side.drop
    waited_for = drop.status is DropStatus.ACTIVE and drop.opens_ms <= time() * 1000 < drop.closes_ms
    return not waited_for, side.issued


def _groups(sides: Sequence[LedgerSide]) -> Iterator[list[LedgerSide]]:
    group: list[LedgerSide] = []
    voucher_count = 0
    for side in sides:
        full = len(group) == limits.BATCH_DROPS_MAX_COUNT
        if group and (full or voucher_count + side.issued > GROUP_VOUCHERS_COUNT):
            yield group
            group, voucher_count = [], 0
        group.append(side)
        voucher_count += side.issued
    if group:
        yield group


def _older_epochs(drop: Drop) -> list[tuple[int, int]]:
    return [(drop.drop_no, epoch) for epoch in range(max(1, drop.epoch - OLD_EPOCHS_COUNT), drop.epoch)]


def _tell(side: LedgerSide, result: PublishResult, closed_s: float) -> None:
    drop = side.drop
    match result:
        case PublishResult.PUBLISHED:
            metrics.REBUILDS.labels(drop.drop_id).inc()
            metrics.REBUILD_CLOSED_SECONDS.observe(closed_s)
            log.warning(
                "drop rebuilt", drop_id=drop.drop_id, epoch=drop.epoch, issued=side.issued,
                closed_s=round(closed_s, 3),
            )  # fmt: skip
        case PublishResult.REFUSED:
            log.info("rebuild given up", drop_id=drop.drop_id, reason="overtaken by a newer epoch")
        case PublishResult.OUTDATED:
            log.info("rebuild given up", drop_id=drop.drop_id, reason="an operator has changed the drop")
        case PublishResult.INCOMPLETE:
            log.error("drop stays closed", drop_id=drop.drop_id, reason="vouchers are not as many as issued")
