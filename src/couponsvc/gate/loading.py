"""Load a drop into Redis under an epoch, open it, fence it, and remove what is over.

Key names carry the epoch, so loading touches nothing that is in use; only publishing does,
and publishing is a compare-and-set. Hence two loaders, or one that was paused for an hour,
cannot harm: the older epoch is refused.

Everything is done for many drops at once: after Redis was lost a shard has thousands of them to
load, and a round trip for each would cost more than the work.
"""

import enum
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from typing import Final

from redis.asyncio import Redis

from couponsvc.support.bulk import BulkConnection, Call
from couponsvc.support.kill_points import kill_point
from couponsvc.support.lua import LuaScript, ScriptMismatch
from couponsvc.values import keys
from couponsvc.values.drop import Drop

Portion = Sequence[tuple[int, Sequence[str | bytes]]]
"""Some holders of some drops: each its `drop_no` and a flat `field, note, field, note, …` (see
`values.note`), at most `limits.LOAD_CHUNK_COUNT` holders in all."""

_IN_LOAD: Final = kill_point("rebuild.in_load")
_BEFORE_PUBLISH: Final = kill_point("rebuild.before_publish")


class LoadRefused(Exception):
    """The same or a newer epoch of the drop is published: somebody else has loaded it."""


class LoadIncomplete(Exception):
    """The holders in Redis are not as many as Postgres has issued; nothing was published."""


class PublishResult(enum.Enum):
    """What became of a load, in order of precedence; the value is the letter of `publish_epoch.lua`."""

    REFUSED = "R"
    """The same or a newer epoch of the drop is published: somebody else has loaded it."""
    INCOMPLETE = "I"
    """The holders in Redis are not as many as Postgres has issued; nothing was published."""
    OUTDATED = "O"
    """A newer definition was told while the drop was closed; read it and load again."""
    PUBLISHED = "P"
    """The drop is open."""


class FenceResult(enum.Enum):
    """What became of a fence, in order of precedence; the value is the script's letter."""

    CLOSED = "C"
    """No epoch was open: never loaded, lost, or fenced before."""
    OPEN = "O"
    """The epoch that was asked for, or a newer one, is published; it stays open."""
    FENCED = "F"
    """Grabs of the drop are refused from here on."""


class UnloadResult(enum.Enum):
    """What became of an epoch's keys, in order of precedence."""

    OPEN = "O"
    """The epoch is the published one; its keys stay."""
    UNLOADED = "U"
    """The keys are gone, or never were."""


_PUBLISH: Final = LuaScript(
    "couponsvc.gate",
    "publish_epoch",
    keys=["shard", "state", "holders"],
    arguments=[
        "drop_no",
        "epoch",
        "issued",
        "quantity",
        "limit",
        "opens_ms",
        "closes_ms",
        "status",
        "version",
        "control",
    ],
)
_FENCE: Final = LuaScript(
    "couponsvc.gate", "fence_drop", keys=["shard"], arguments=["drop_no", "epoch", "control"]
)
_UNLOAD: Final = LuaScript(
    "couponsvc.gate", "unload_epoch", keys=["shard", "state", "holders"], arguments=["drop_no", "epoch"]
)
_MEND_BACKLOG: Final = LuaScript("couponsvc.gate", "mend_backlog", keys=["shard", "grants"], arguments=[])
for _script, _results in ((_PUBLISH, PublishResult), (_FENCE, FenceResult), (_UNLOAD, UnloadResult)):
    if _script.header.returns != tuple((result.value, result.name) for result in _results):
        message = f"{_script.name}.lua returns {_script.header.returns}; {_results.__name__} says otherwise"
        raise ScriptMismatch(message)


async def load_epochs(
    redis: Redis, loads: Sequence[tuple[Drop, int]], portions: AsyncIterable[Portion]
) -> list[PublishResult]:
    """Load the holders of drops of one shard, each under its `drop.epoch`, then open the drops with them.

    Args:
        redis: The shard's server.
        loads: At least one definition as Postgres returned it when it raised the epoch (or, for a
            drop that was never open, as it stands); and its vouchers in Postgres, counted after
            the epoch was raised.
        portions: The holders of those vouchers; read only where a drop may be loaded.

    Returns:
        What became of each, same order; where it is not open its keys are gone.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; some of the epochs may have been
            published. Raise an epoch again before loading again.
    """
    shard = loads[0][0].shard
    epochs = [(drop.drop_no, drop.epoch) for drop, _ in loads]
    async with BulkConnection(redis) as bulk:
        unloaded = await _unload(bulk, shard, epochs)
        loadable = [
            load for load, result in zip(loads, unloaded, strict=True) if result is UnloadResult.UNLOADED
        ]
        if not loadable:
            return [PublishResult.REFUSED] * len(loads)
        holders_keys = {drop.drop_no: _epoch_keys(shard, drop.drop_no, drop.epoch)[1] for drop, _ in loadable}
        await _store(bulk, holders_keys, portions)
        _BEFORE_PUBLISH()
        replies = await bulk.run_each(_PUBLISH, [_publish_call(drop, issued) for drop, issued in loadable])
        results = [PublishResult(reply.decode()) for reply in replies]
        told = {drop.drop_no: result for (drop, _), result in zip(loadable, results, strict=True)}
        closed = [(no, epoch) for no, epoch in epochs if told.get(no) not in {None, PublishResult.PUBLISHED}]
        await _unload(bulk, shard, closed)
    return [told.get(drop.drop_no, PublishResult.REFUSED) for drop, _ in loads]


async def load_epoch(
    redis: Redis, drop: Drop, issued: int, rows: AsyncIterable[Sequence[str | bytes]]
) -> None:
    """Load one drop whose holders come in chunks. See `load_epochs`.

    Raises:
        LoadRefused: the same or a newer epoch is published.
        LoadIncomplete: the rows were not as many as `issued`.
        redis.exceptions.RedisError: as there.
    """
    (result,) = await load_epochs(redis, [(drop, issued)], _portions_of(drop, rows))
    if result is PublishResult.REFUSED:
        raise LoadRefused(f"drop {drop.drop_no}: epoch {drop.epoch} or a newer one is published already")
    if result is PublishResult.OUTDATED:
        raise LoadRefused(f"drop {drop.drop_no}: a newer definition than version {drop.version} is known")
    if result is PublishResult.INCOMPLETE:
        raise LoadIncomplete(
            f"drop {drop.drop_no}: epoch {drop.epoch} does not have {issued} holders in Redis"
        )


async def publish_new_drops(redis: Redis, drops: Sequence[Drop]) -> list[bool]:
    """Open drops of one shard of which nothing was ever issued; False for one that is open already.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    results = await load_epochs(redis, [(drop, 0) for drop in drops], _nobody()) if drops else []
    return [result is PublishResult.PUBLISHED for result in results]


async def publish_new_drop(redis: Redis, drop: Drop) -> bool:
    """Open one drop. See `publish_new_drops`."""
    return (await publish_new_drops(redis, [drop]))[0]


async def fence_drops(redis: Redis, drops: Sequence[Drop]) -> list[FenceResult]:
    """Refuse every grab of some drops until `drop.epoch` (raised in Postgres before) is published.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    calls: list[Call] = [
        ([keys.shard_key(drop.shard)], [drop.drop_no, drop.epoch, keys.control_channel(drop.shard)])
        for drop in drops
    ]
    async with BulkConnection(redis) as bulk:
        return [FenceResult(reply.decode()) for reply in await bulk.run_each(_FENCE, calls)]


async def fence_drop(redis: Redis, drop: Drop) -> FenceResult:
    """Fence one drop. See `fence_drops`."""
    return (await fence_drops(redis, [drop]))[0]


async def unload_epochs(redis: Redis, shard: int, epochs: Collection[tuple[int, int]]) -> list[UnloadResult]:
    """Remove keys of drops, each of one `(drop_no, epoch)`; a published epoch stays.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    async with BulkConnection(redis) as bulk:
        return await _unload(bulk, shard, epochs)


async def unload_epoch(redis: Redis, shard: int, drop_no: int, epoch: int) -> UnloadResult:
    """Remove the keys of one. See `unload_epochs`."""
    return (await unload_epochs(redis, shard, [(drop_no, epoch)]))[0]


async def mend_backlog(redis: Redis, shard: int) -> int:
    """Forget grants that are counted although the stream is empty; how many they were.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    return int(await _MEND_BACKLOG.run(redis, [keys.shard_key(shard), keys.grants_key(shard)], []))


async def _unload(
    bulk: BulkConnection, shard: int, epochs: Collection[tuple[int, int]]
) -> list[UnloadResult]:
    calls: list[Call] = [
        ([keys.shard_key(shard), *_epoch_keys(shard, drop_no, epoch)], [drop_no, epoch])
        for drop_no, epoch in epochs
    ]
    return [UnloadResult(reply.decode()) for reply in await bulk.run_each(_UNLOAD, calls)]


async def _store(
    bulk: BulkConnection, holders_keys: Mapping[int, str], portions: AsyncIterable[Portion]
) -> None:
    """Write holders of the drops that have a key; while Redis takes a portion in, the next is read."""
    on_the_way_count = 0
    async for portion in portions:
        for _ in range(on_the_way_count):
            await bulk.reply()
        commands = [("HSET", holders_keys[no], *pairs) for no, pairs in portion if no in holders_keys]
        await bulk.send_all(commands)
        on_the_way_count = len(commands)
        _IN_LOAD()
    for _ in range(on_the_way_count):
        await bulk.reply()


def _publish_call(drop: Drop, issued: int) -> Call:
    return (
        [keys.shard_key(drop.shard), *_epoch_keys(drop.shard, drop.drop_no, drop.epoch)],
        [
            drop.drop_no,
            drop.epoch,
            issued,
            drop.quantity,
            drop.per_person_limit,
            drop.opens_ms,
            drop.closes_ms,
            int(drop.status),
            drop.version,
            keys.control_channel(drop.shard),
        ],
    )


def _epoch_keys(shard: int, drop_no: int, epoch: int) -> tuple[str, str]:
    return keys.state_key(shard, drop_no, epoch), keys.holders_key(shard, drop_no, epoch)


async def _portions_of(drop: Drop, rows: AsyncIterable[Sequence[str | bytes]]) -> AsyncIterator[Portion]:
    async for pairs in rows:
        yield [(drop.drop_no, pairs)]


async def _nobody() -> AsyncIterator[Portion]:
    portions: tuple[Portion, ...] = ()
    for portion in portions:
        yield portion
