"""Load a drop into Redis under an epoch, open it, fence it, and remove what is over.

Key names carry the epoch, so loading touches nothing that is in use; only publishing does,
and publishing is a compare-and-set. Hence two loaders, or one that was paused for an hour,
cannot harm: the older epoch is refused.
"""

import enum
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Final

from redis.asyncio import Redis

from couponsvc.support.bulk import BulkConnection
from couponsvc.support.kill_points import kill_point
from couponsvc.support.lua import LuaScript, ScriptMismatch
from couponsvc.values import keys
from couponsvc.values.drop import Drop

_IN_LOAD: Final = kill_point("rebuild.in_load")
_BEFORE_PUBLISH: Final = kill_point("rebuild.before_publish")


class LoadRefused(Exception):
    """The same or a newer epoch of the drop is published: somebody else has loaded it."""


class LoadIncomplete(Exception):
    """The holders in Redis are not as many as Postgres has issued; nothing was published."""


class PublishResult(enum.Enum):
    """What `publish_epoch.lua` answers, in order of precedence."""

    REFUSED = "R"
    INCOMPLETE = "I"
    PUBLISHED = "P"


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


async def load_epoch(redis: Redis, drop: Drop, issued: int, rows: AsyncIterable[Sequence[str]]) -> None:
    """Load a drop's holders under `drop.epoch`, then open the drop with them.

    Args:
        redis: The shard's server.
        drop: The definition as Postgres returned it when it raised the epoch (or, for a drop
            that was never open, as it stands).
        issued: Vouchers in Postgres, read after the epoch was raised.
        rows: The holders of those vouchers in chunks of at most `limits.LOAD_CHUNK_COUNT`,
            each a flat `field, note, field, note, …` (see `values.note`).

    Raises:
        LoadRefused: the same or a newer epoch is published.
        LoadIncomplete: the rows were not as many as `issued`.
        redis.exceptions.RedisError: the server cannot be reached; the epoch may have been
            published. Raise the epoch again before loading again.
    """
    state_key, holders_key = _epoch_keys(drop.shard, drop.drop_no, drop.epoch)
    if await unload_epoch(redis, drop.shard, drop.drop_no, drop.epoch) is UnloadResult.OPEN:
        raise LoadRefused(f"drop {drop.drop_id}: epoch {drop.epoch} is published already")
    await _store(redis, holders_key, rows)
    _BEFORE_PUBLISH()
    reply: bytes = await _PUBLISH.run(
        redis,
        [keys.shard_key(drop.shard), state_key, holders_key],
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
    result = PublishResult(reply.decode())
    if result is PublishResult.PUBLISHED:
        return
    await unload_epoch(redis, drop.shard, drop.drop_no, drop.epoch)
    if result is PublishResult.REFUSED:
        raise LoadRefused(f"drop {drop.drop_id}: epoch {drop.epoch} or a newer one is published already")
    raise LoadIncomplete(f"drop {drop.drop_id}: epoch {drop.epoch} does not have {issued} holders in Redis")


async def publish_new_drop(redis: Redis, drop: Drop) -> bool:
    """Open a drop of which nothing was ever issued; False where it is open already.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    try:
        await load_epoch(redis, drop, 0, _nobody())
    except LoadRefused:
        return False
    return True


async def fence_drop(redis: Redis, drop: Drop) -> FenceResult:
    """Refuse every grab of a drop until `drop.epoch` (raised in Postgres before) is published.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    reply: bytes = await _FENCE.run(
        redis, [keys.shard_key(drop.shard)], [drop.drop_no, drop.epoch, keys.control_channel(drop.shard)]
    )
    return FenceResult(reply.decode())


async def unload_epoch(redis: Redis, shard: int, drop_no: int, epoch: int) -> UnloadResult:
    """Remove a drop's keys of one epoch; the published epoch stays.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    reply: bytes = await _UNLOAD.run(
        redis, [keys.shard_key(shard), *_epoch_keys(shard, drop_no, epoch)], [drop_no, epoch]
    )
    return UnloadResult(reply.decode())


async def mend_backlog(redis: Redis, shard: int) -> int:
    """Forget grants that are counted although the stream is empty; how many they were.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; calling again is safe.
    """
    return int(await _MEND_BACKLOG.run(redis, [keys.shard_key(shard), keys.grants_key(shard)], []))


async def _store(redis: Redis, holders_key: str, rows: AsyncIterable[Sequence[str]]) -> None:
    """Write chunks into a hash; while Redis takes one in, the next is read."""
    async with BulkConnection(redis) as bulk:
        sent = False
        async for chunk in rows:
            if sent:
                await bulk.reply()
            await bulk.send("HSET", holders_key, *chunk)
            sent = True
            _IN_LOAD()
        if sent:
            await bulk.reply()


def _epoch_keys(shard: int, drop_no: int, epoch: int) -> tuple[str, str]:
    return keys.state_key(shard, drop_no, epoch), keys.holders_key(shard, drop_no, epoch)


async def _nobody() -> AsyncIterator[Sequence[str]]:
    chunks: tuple[Sequence[str], ...] = ()
    for chunk in chunks:
        yield chunk
