"""What the gate must hear of a changed drop, and the one thing it must be asked first.

Redis may miss what Postgres has committed: telling it again is harmless, because definitions carry
a version, and the reconciler does so.
"""

from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc.gate.definition import DefinitionResult, apply_definition
from couponsvc.gate.loading import publish_new_drop
from couponsvc.programs.definitions import Conflict
from couponsvc.values import keys
from couponsvc.values.drop import Drop

_RECORDED: Final = (
    "The change is recorded and reaches the gate when Redis answers again. "
    "Read the drop to see it; defining, pausing, resuming or closing again is harmless."
)


class GateAway(Exception):
    """Redis could not be told or asked; the message says whether Postgres has the change."""


class GateRebuilding(Exception):
    """The gate cannot say what is granted, because the drop is being rebuilt. Nothing was changed."""


async def now_ms(redis: Redis) -> int:
    """The only clock of windows: Redis' own, in milliseconds.

    Raises:
        GateAway: Redis does not answer; nothing was changed.
    """
    try:
        seconds, microseconds = await redis.time()
    except (RedisError, OSError) as error:
        raise GateAway("Redis cannot be reached; nothing was changed. Ask again.") from error
    return seconds * 1_000 + microseconds // 1_000


async def take_from_gate(redis: Redis, drop: Drop, count: int) -> None:
    """Take units from `available` before Postgres commits the lower quantity.

    Where the commit then fails, Redis has fewer units than Postgres: nobody gets one too many,
    and the reconciler sees the drift and rebuilds.
    """
    try:
        result = await apply_definition(redis, drop, committed=False)
    except (RedisError, OSError) as error:
        raise GateAway("Redis cannot be reached; the quantity stands as it was. Ask again.") from error
    match result:
        case DefinitionResult.APPLIED:
            return
        case DefinitionResult.CONFLICT:
            raise Conflict(
                f"Fewer than {count} units of drop {drop.drop_id} are available; the others are granted."
            )
        case DefinitionResult.FENCED | DefinitionResult.ALREADY:
            raise GateRebuilding("The gate cannot say at present how many units are free. Ask again.")


async def tell_gate(redis: Redis, drop: Drop, *, fresh: bool = False) -> None:
    """Hand a committed definition to the gate; `fresh`: under an epoch that was never loaded.

    A drop that is not loaded stays so: whoever loads it reads the same committed definition, or
    has read an older one and cannot open the drop with it (`publish_epoch.lua`).
    """
    try:
        if fresh:
            await publish_new_drop(redis, drop)
        elif await apply_definition(redis, drop) is not DefinitionResult.APPLIED:
            await redis.publish(keys.control_channel(drop.shard), drop.drop_no)
    except (RedisError, OSError) as error:
        raise GateAway(_RECORDED) from error


async def announce(redis: Redis, shard: int, drop_no: int) -> None:
    """Tell the API processes of a shard that they should read a drop again.

    Raises:
        GateAway: Redis does not answer; caches follow by age.
    """
    try:
        await redis.publish(keys.control_channel(shard), drop_no)
    except (RedisError, OSError) as error:
        raise GateAway(_RECORDED) from error
