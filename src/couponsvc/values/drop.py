"""A drop: one opening of a stock of vouchers, with a window."""

import enum
from dataclasses import dataclass


class DropStatus(enum.IntEnum):
    """What an operator decided of a drop. Stored as the integer, in Postgres and Redis alike."""

    ACTIVE = 0
    PAUSED = 1
    CLOSED = 2


class DropState(enum.StrEnum):
    """What a drop looks like from outside (contract: `GET /v1/drops/{drop_id}`)."""

    SCHEDULED = "scheduled"
    OPEN = "open"
    PAUSED = "paused"
    SOLD_OUT = "sold_out"
    ENDED = "ended"
    CLOSED = "closed"
    REBUILDING = "rebuilding"


@dataclass(frozen=True, slots=True)
class VoucherTerms:
    """What one voucher of a drop is worth. Frozen with the drop's first grant."""

    face_value_fen: int
    min_spend_fen: int
    valid_for_ms: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A drop as Postgres defines it, without its counters."""

    drop_no: int
    drop_id: str
    program_id: str
    template_id: str
    region: str
    """Administrative division code (GB/T 2260) of the program; empty: no restriction."""
    shard: int
    epoch: int
    version: int
    status: DropStatus
    quantity: int
    per_person_limit: int
    opens_ms: int
    closes_ms: int
    terms: VoucherTerms
    partners: frozenset[int]
    """`partner_no` of those who may see the drop and grab from it."""
