"""Give a drop that is open in Redis the definition that Postgres holds."""

import enum
from typing import Final

from redis.asyncio import Redis

from couponsvc.support.lua import LuaScript, ScriptMismatch
from couponsvc.values import keys
from couponsvc.values.drop import Drop


class DefinitionResult(enum.Enum):
    """What became of a definition, in order of precedence; the value is the script's letter."""

    FENCED = "F"
    """The drop's epoch is not the published one, or its state is not loaded: nothing to change."""
    ALREADY = "Y"
    """Redis holds this version of the definition, or a newer one."""
    CONFLICT = "C"
    """The quantity is below what is granted and issued; nothing was changed."""
    APPLIED = "A"
    """Limit, window, status and quantity are the new ones; processes were told."""


_DEFINE: Final = LuaScript(
    "couponsvc.gate",
    "define_drop",
    keys=["shard", "state"],
    arguments=[
        "drop_no",
        "epoch",
        "version",
        "quantity",
        "limit",
        "opens_ms",
        "closes_ms",
        "status",
        "control",
        "committed",
    ],
)
if _DEFINE.header.returns != tuple((result.value, result.name) for result in DefinitionResult):
    message = f"define_drop.lua returns {_DEFINE.header.returns}; DefinitionResult says otherwise"
    raise ScriptMismatch(message)


async def apply_definition(redis: Redis, drop: Drop, *, committed: bool = True) -> DefinitionResult:
    """Set a drop's rules and quantity in Redis in one atomic step; harmless to repeat.

    `available` moves by the difference between the new quantity and the one Redis held, so
    that `available + pending + issued = quantity` holds before and after. When something
    changed, the drop's number is published on the shard's control channel.

    Args:
        redis: The shard's server.
        drop: The definition as read from Postgres; its `epoch` and `version` are compared.
        committed: Postgres has it for certain. Where the drop is closed, the gate then notes its
            version, and no older definition can open it.

    Raises:
        redis.exceptions.RedisError: the server cannot be reached; the definition may have
            been applied, and applying it again is safe.
    """
    reply: bytes = await _DEFINE.run(
        redis,
        [keys.shard_key(drop.shard), keys.state_key(drop.shard, drop.drop_no, drop.epoch)],
        [
            drop.drop_no,
            drop.epoch,
            drop.version,
            drop.quantity,
            drop.per_person_limit,
            drop.opens_ms,
            drop.closes_ms,
            int(drop.status),
            keys.control_channel(drop.shard),
            int(committed),
        ],
    )
    return DefinitionResult(reply.decode())
