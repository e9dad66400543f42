"""Binding of `grab_batch.lua`: what the gate is asked and what it says."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from couponsvc.support.lua import LuaScript, ScriptMismatch
from couponsvc.values import keys, wire
from couponsvc.values.outcome import Outcome
from couponsvc.values.wire import GrabRow

SCRIPT: Final = LuaScript(
    "couponsvc.gate",
    "grab_batch",
    keys=["shard", "grants", "drops"],
    arguments=["origin", "drops", "grabs", "backlog_max_count"],
)

if SCRIPT.header.returns != tuple((outcome.value, outcome.name) for outcome in Outcome):
    raise ScriptMismatch(
        f"grab_batch.lua returns {SCRIPT.header.returns}; values.outcome.Outcome lists "
        f"{[(outcome.value, outcome.name) for outcome in Outcome]}, in that order of precedence"
    )

OUTCOME_OF: Final[dict[int, Outcome]] = {ord(outcome.value): outcome for outcome in Outcome}
"""Outcome by the byte that the script returns."""


class Decision(NamedTuple):
    """The gate's answer to one batch."""

    codes: bytes
    """One byte per grab, same order; see `OUTCOME_OF`."""
    notes: Sequence[bytes]
    """Notes of those outcomes that carry one, in the order of their grabs."""


def grab_command(
    shard: int,
    origin: bytes,
    drops: Sequence[tuple[int, int]],
    grabs: Sequence[GrabRow],
    backlog_max_count: int,
) -> tuple[list[str], list[bytes | int]]:
    """Keys and arguments of one call.

    `drops` are `(drop_no, epoch)`.
    """
    key_names = [keys.shard_key(shard), keys.grants_key(shard)]
    for drop_no, epoch in drops:
        key_names.append(keys.state_key(shard, drop_no, epoch))
        key_names.append(keys.holders_key(shard, drop_no, epoch))
    return key_names, [origin, wire.encode_drops(drops), wire.encode_grabs(grabs), backlog_max_count]
