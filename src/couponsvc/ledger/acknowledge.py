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
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from couponsvc.ledger.grouping import Settled, SettledPart
from couponsvc.support.lua import LuaScript
from couponsvc.values import keys, wire
from couponsvc.values.note import holder_field, write_note
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import DropEpoch

ACKNOWLEDGE: Final = LuaScript(
    "couponsvc.ledger",
    "acknowledge",
    keys=("shard", "grants", "drops"),
    arguments=("group", "drops", "entries"),
)

_encode = msgspec.msgpack.Encoder().encode
_Effect = tuple[int, int, int, list[str], list[str]]
_NOTED: Final = int(Verdict.COMMITTED)
_HELD: Final = int(Verdict.HELD)


async def publish_and_acknowledge(redis: Redis, shard: int, settled: Sequence[Settled]) -> int:
    """Publish the confirmations of committed entries and acknowledge them, in one write.

    Only for entries whose commit is known.

    Returns:
        How many entries were acknowledged now; others had been before.

    Raises:
        redis.exceptions.RedisError, OSError: the reply was lost; the entries may be acknowledged
            or will be delivered again.
    """
    script_keys, arguments = acknowledgement(shard, settled)
    pipeline = redis.pipeline(transaction=False)
    for entry, parts in settled:
        confirmations = (
            parts[0].confirmations if len(parts) == 1 else [c for p in parts for c in p.confirmations]
        )
        pipeline.publish(
            keys.confirm_channel(shard, entry.origin.origin),
            wire.encode_confirmations(entry.origin.batch_no, confirmations),
        )
    pipeline.evalsha(ACKNOWLEDGE.digest, len(script_keys), *script_keys, *arguments)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, NoScriptError):  # answered before anything ran: not a repetition
            return int(await ACKNOWLEDGE.run(redis, script_keys, arguments))
        if isinstance(reply, Exception):
            raise reply
    return int(replies[-1])


async def acknowledge_unread(redis: Redis, shard: int, entry_ids: Sequence[str]) -> int:
    """Take entries off the stream whose grants are not known: deleted, or kept as dead letters.

    Their units stay pending in Redis, because what they are cannot be known: drift, to be rebuilt.

    Raises:
        redis.exceptions.RedisError, OSError: as `publish_and_acknowledge`.
    """
    arguments: list[str | bytes] = [keys.GROUP, _encode([]), _encode([(i, 0, []) for i in entry_ids])]
    script_keys = [keys.shard_key(shard), keys.grants_key(shard)]
    return int(await ACKNOWLEDGE.run(redis, script_keys, arguments))


def acknowledgement(shard: int, settled: Sequence[Settled]) -> tuple[list[str], list[str | bytes]]:
    """Keys and arguments of `acknowledge.lua` for these entries."""
    script_keys = [keys.shard_key(shard), keys.grants_key(shard)]
    indexes: dict[DropEpoch, int] = {}
    rows: list[tuple[str, int, list[_Effect]]] = []
    for entry, parts in settled:
        effects: list[_Effect] = []
        for part in parts:
            index = indexes.get(part.key)
            if index is None:
                index = indexes[part.key] = len(indexes) + 1
                script_keys.append(keys.state_key(shard, *part.key))
                script_keys.append(keys.holders_key(shard, *part.key))
            effects.append(_effect(index, part))
        rows.append((entry.entry_id, len(entry.grants), effects))
    return script_keys, [keys.GROUP, _encode(list(indexes)), _encode(rows)]


def _effect(drop_index: int, part: SettledPart) -> _Effect:
    issued, available = 0, 0
    noted: list[str] = []
    removed: list[str] = []
    for position, (grant, confirmation) in enumerate(zip(part.grants, part.confirmations, strict=True)):
        _, verdict, seq, issued_ms, code, out_request_no = confirmation
        field = holder_field(grant.ordinal, grant.holder)
        if verdict == _NOTED or (verdict == _HELD and position in part.mended):
            issued += 1
            noted += (field, write_note(out_request_no, seq, issued_ms, code))
        else:
            available += Verdict(verdict).returns_unit
            removed += (field, grant.out_request_no)
    return drop_index, issued, available, noted, removed
