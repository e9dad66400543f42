"""Every key and channel name in Redis, in one place.

All keys of a shard carry the hash tag `{s<shard>}`, so that one script may touch
them on a cluster. The epoch is part of the name of what it guards: keys of an
older epoch are simply other keys.
"""

from typing import Final

GROUP: Final = "drain"
"""Consumer group of the drainers on a shard's grant stream."""

BACKLOG_FIELD: Final = "backlog"
"""Field of the shard hash: grants on the stream that are not acknowledged."""


def shard_key(shard: int) -> str:
    """Hash: `e<drop_no>` → published epoch, `v<drop_no>` (see `define_drop.lua`), `backlog`. No TTL."""
    return f"cs:{{s{shard}}}:shard"


def epoch_field(drop_no: int) -> str:
    """Field of the shard hash that holds a drop's published epoch."""
    return f"e{drop_no}"


def grants_key(shard: int) -> str:
    """Stream of grants, one entry per decided batch. Never trimmed by length. No TTL."""
    return f"cs:{{s{shard}}}:grants"


def state_key(shard: int, drop_no: int, epoch: int) -> str:
    """Hash of a drop's counters and rules under one epoch (fields: see `STATE_FIELDS`)."""
    return f"cs:{{s{shard}}}:d{drop_no}:e{epoch}:state"


def holders_key(shard: int, drop_no: int, epoch: int) -> str:
    """Hash of holders: `<ordinal>:<holder>` → note (see `values.note`)."""
    return f"cs:{{s{shard}}}:d{drop_no}:e{epoch}:holders"


def rate_key(shard: int, partner_no: int) -> str:
    """String: until when a limited partner's rate is used, in µs of Redis' clock. Expires then."""
    return f"cs:{{s{shard}}}:r{partner_no}:rate"


def confirm_channel(shard: int, origin: str) -> str:
    """Publish/subscribe channel on which one API process hears of its grants."""
    return f"cs:{{s{shard}}}:confirm:{origin}"


def control_channel(shard: int) -> str:
    """Publish/subscribe channel: a drop's definition or epoch changed (payload: drop_no)."""
    return f"cs:{{s{shard}}}:control"


STATE_FIELDS: Final = (
    "available",
    "pending",
    "issued",
    "quantity",
    "limit",
    "opens_ms",
    "closes_ms",
    "status",
    "version",
)
"""Fields of a state hash, all integers. `available + pending + issued = quantity` in every
atomic step: `issued` counts what acknowledgements noted, so it trails Postgres by `pending`.
`status`: see `values.drop.DropStatus`; `version`: of the definition last applied."""
