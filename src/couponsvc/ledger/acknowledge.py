"""Tells waiters what was committed, and takes the settled entries off the stream.

Both go out in one write: confirmations first, so that a waiter does not wait for the
bookkeeping. Losing either is harmless. A waiter that hears nothing looks in Postgres; an entry
whose acknowledgement was lost is delivered again, ruled on again, and acknowledged then.

What Redis notes of each verdict, under the same epoch only:

- COMMITTED: the field becomes the voucher's note; pending - 1, issued + 1.
- HELD by a voucher at the same ordinal, which Redis had lost: the same, with that voucher's note.
- MISMATCH: the unit was real; pending - 1, available + 1, the field is removed.
- EXCEEDED, STALE, HELD otherwise: the unit never existed; pending - 1, the field is removed,
  nothing goes back. Then `available + pending + issued` falls short of the quantity: that is
  drift, and whoever checks for it must rebuild, because Redis granted what was not there.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from couponsvc.ledger.grouping import Settled, SettledPart
from couponsvc.support.lua import LuaScript
from couponsvc.support.resp import Argument, RespLine
from couponsvc.values import keys, wire
from couponsvc.values.note import committed_pairs, holder_field, write_note
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import DropEpoch

ACKNOWLEDGE: Final = LuaScript(
    "couponsvc.ledger",
    "acknowledge",
    keys=("shard", "grants", "drops"),
    arguments=("group", "drops", "entries"),
)

_encode = msgspec.msgpack.Encoder().encode
_Effect = tuple[int, int, int, int, int]
_NOTED: Final = int(Verdict.COMMITTED)
_HELD: Final = int(Verdict.HELD)


class _Drop(NamedTuple):
    """What the entries of one acknowledgement write into one drop's holders; see `acknowledge.lua`."""

    drop_index: int
    noted: list[str]
    removed: list[str]


class Report:
    """Confirmations of committed entries and their acknowledgement, sent in one write when made."""

    def __init__(self, line: RespLine, shard: int, settled: Sequence[Settled]) -> None:
        """Send it. Only for entries whose commit is known."""
        self._line: Final = line
        key_names, arguments = acknowledgement(shard, settled)
        self._call: Final = (len(key_names), *key_names, *arguments)
        commands: list[Sequence[Argument]] = []
        for entry, parts in settled:
            if entry.origin.origin == wire.NOBODY:
                continue
            confirmations = (
                parts[0].confirmations if len(parts) == 1 else [c for p in parts for c in p.confirmations]
            )
            channel = keys.confirm_channel(shard, entry.origin.origin)
            message = wire.encode_confirmations(entry.origin.batch_no, confirmations)
            commands.append(("PUBLISH", channel, message))
        self._replies: Final = line.ask(*commands, ("EVALSHA", ACKNOWLEDGE.digest, *self._call))

    async def acknowledged(self) -> int:
        """Wait for the replies.

        Returns:
            How many entries were acknowledged by it; others had been before.

        Raises:
            redis.exceptions.RedisError, OSError: the reply was lost; the entries may be acknowledged
                or will be delivered again.
        """
        for reply in await self._replies:
            if isinstance(reply, NoScriptError):  # answered before anything ran: not a repetition
                return int(await self._line.call("EVAL", ACKNOWLEDGE.source, *self._call))
            if isinstance(reply, ResponseError):
                raise reply
        return int(reply)


async def acknowledge_unread(redis: Redis, shard: int, entry_ids: Sequence[str]) -> int:
    """Take entries off the stream whose grants are not known: deleted, or kept as dead letters.

    Their units stay pending in Redis, because what they are cannot be known: drift, to be rebuilt.

    Raises:
        redis.exceptions.RedisError, OSError: as `Report.acknowledged`.
    """
    arguments: list[str | bytes] = [keys.GROUP, _encode([]), _encode([(i, 0, []) for i in entry_ids])]
    script_keys = [keys.shard_key(shard), keys.grants_key(shard)]
    return int(await ACKNOWLEDGE.run(redis, script_keys, arguments))


def acknowledgement(shard: int, settled: Sequence[Settled]) -> tuple[list[str], list[str | bytes]]:
    """Keys and arguments of `acknowledge.lua` for these entries."""
    key_names = [keys.shard_key(shard), keys.grants_key(shard)]
    drops: dict[DropEpoch, _Drop] = {}
    rows: list[tuple[str, int, list[_Effect]]] = []
    for entry, parts in settled:
        effects: list[_Effect] = []
        for part in parts:
            drop = drops.get(part.key)
            if drop is None:
                drop = drops[part.key] = _Drop(len(drops) + 1, [], [])
                key_names.append(keys.state_key(shard, *part.key))
                key_names.append(keys.holders_key(shard, *part.key))
            effects.append(_effect(drop, part))
        rows.append((entry.entry_id, len(entry.grants), effects))
    noted = [(*key, drop.noted, drop.removed) for key, drop in drops.items()]
    return key_names, [keys.GROUP, _encode(noted), _encode(rows)]


def _effect(drop: _Drop, part: SettledPart) -> _Effect:
    """Add the part's texts to its drop's; what the script must know of them."""
    drop_index, noted, removed = drop
    if part.all_committed:
        noted += committed_pairs(
            [(grant[3], grant[1]) for grant in part.grants],
            [(number, seq, issued_ms, code) for _, _, seq, issued_ms, code, number in part.confirmations],
        )
        return drop_index, len(part.grants), 0, 2 * len(part.grants), 0
    noted_at, removed_at = len(noted), len(removed)
    issued = available = 0
    for position, (grant, confirmation) in enumerate(zip(part.grants, part.confirmations, strict=True)):
        _, holder, number, ordinal, _, _, _ = grant
        _, verdict, seq, issued_ms, code, out_request_no = confirmation
        field = holder_field(ordinal, holder)
        if verdict == _NOTED or (verdict == _HELD and position in part.mended):
            issued += 1
            noted += (field, write_note(out_request_no, seq, issued_ms, code))
        else:
            available += Verdict(verdict).returns_unit
            removed += (field, number)
    return drop_index, issued, available, len(noted) - noted_at, len(removed) - removed_at
