"""Binding of `grab_batch.lua`: what the gate is asked and what it says."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from couponsvc.support.lua import LuaScript, ScriptMismatch
from couponsvc.values import keys, wire
from couponsvc.values.outcome import Outcome
from couponsvc.values.rate import Rate
from couponsvc.values.wire import GrabRow

SCRIPT: Final = LuaScript(
    "couponsvc.gate",
    "grab_batch",
    keys=["shard", "grants", "drops", "rates"],
    arguments=["origin", "drops", "grabs", "backlog_max_count", "rates"],
)

if SCRIPT.header.returns != tuple((outcome.value, outcome.name) for outcome in Outcome):
    raise ScriptMismatch(
        f"grab_batch.lua returns {SCRIPT.header.returns}; values.outcome.Outcome lists "
        f"{[(outcome.value, outcome.name) for outcome in Outcome]}, in that order of precedence"
    )

OUTCOME_OF: Final[dict[int, Outcome]] = {ord(outcome.value): outcome for outcome in Outcome}
"""Outcome by the byte that the script returns."""


_NOBODY_LIMITED: Final[Mapping[int, Rate]] = MappingProxyType({})


class Decision(NamedTuple):
    """The gate's answer to one batch."""

    codes: bytes
    """One byte per grab, same order; see `OUTCOME_OF`."""
    notes: Sequence[bytes]
    """Notes of those outcomes that carry one, in the order of their grabs; then, for each rate of the
    batch, how far ahead of the clock it is used, in µs."""


def grab_command(
    shard: int,
    origin: bytes,
    drops: Sequence[tuple[int, int]],
    grabs: Sequence[GrabRow],
    backlog_max_count: int,
    *,
    rates: Mapping[int, Rate] = _NOBODY_LIMITED,
) -> tuple[list[str], list[bytes | int]]:
    """Keys and arguments of one call.

    Args:
        shard: Whose grabs they are.
        origin: See `wire.encode_origin`.
        drops: `(drop_no, epoch)`.
        grabs: Those of a limited partner with the place of its rate behind, counted from 1.
        backlog_max_count: Grants that may be on the stream without being committed.
        rates: By partner_no, of the limited partners.
    """
    key_names = [keys.shard_key(shard), keys.grants_key(shard)]
    for drop_no, epoch in drops:
        key_names.append(keys.state_key(shard, drop_no, epoch))
        key_names.append(keys.holders_key(shard, drop_no, epoch))
    arguments: list[bytes | int] = [
        origin,
        wire.encode_drops(drops),
        wire.encode_grabs(grabs),
        backlog_max_count,
    ]
    if rates:
        key_names.extend(keys.rate_key(shard, partner_no) for partner_no in rates)
        arguments.append(wire.encode_rates(rates.values()))
    return key_names, arguments
