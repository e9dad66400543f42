"""What happened while faults were planted, as the callers saw it: everything that the judge may know.

Times are `time.monotonic_ns()` of one machine, so that any two of them can be compared whatever the
wall clocks of the processes under test were told. `wall_offset_ms` leads to the service's own times.
"""

import gzip
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

GRAB: Final = "grab"
LOOK_UP: Final = "look_up"


class Call(NamedTuple):
    """One request of a partner and what came of it."""

    client: int
    action: str
    """`GRAB` or `LOOK_UP`."""
    partner_id: str
    drop_id: str
    person_token: str
    """Of a look-up: whom the partner's own books name for the number."""
    out_request_no: str
    began_ns: int
    """Before anything was sent."""
    ended_ns: int
    """After the answer was read; without one: when it was given up. Its effect may come later still."""
    status: int
    """0: no answer. What was asked for may have happened, may happen later, or never."""
    code: str
    """Of the problem; empty where the answer is none."""
    retryable: bool | None
    """Of the problem; None where the answer is none."""
    body: bytes
    """Of a 200 or 201; of a 409 `person_limit` the voucher that it names; else empty."""


class Operation(NamedTuple):
    """One change of a drop that an operator asked for."""

    what: str
    """`define`, `restock`, `lower`, `pause` or `resume`."""
    drop_id: str
    began_ns: int
    ended_ns: int
    quantity_after: int
    """If it happened."""
    ok: bool | None
    """True: done. False: refused. None: no answer or a 5xx; it may have happened, or happen later."""


class FaultNote(NamedTuple):
    """One fault, from its beginning to the end of its undoing."""

    what: str
    began_ns: int
    ended_ns: int


class _Saved(msgspec.Struct, array_like=True):
    healed_ns: int
    wall_offset_ms: float
    operations: list[Operation]
    faults: list[FaultNote]
    calls: list[Call]


def wall_offset_ms() -> float:
    """What has to be added to `monotonic_ns / 1e6` for Unix time in milliseconds."""
    return time.time_ns() / 1e6 - time.monotonic_ns() / 1e6


@dataclass
class History:
    """Everything that was asked, answered, changed and broken."""

    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    faults: list[FaultNote] = field(default_factory=list)
    healed_ns: int = 0
    """When the last fault was undone and everything was running again; 0: not yet."""
    wall_offset_ms: float = field(default_factory=wall_offset_ms)

    def save(self, path: Path) -> None:
        """Write everything: gzip around MessagePack."""
        saved = _Saved(self.healed_ns, self.wall_offset_ms, self.operations, self.faults, self.calls)
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(msgspec.msgpack.encode(saved))

    @classmethod
    def load(cls, path: Path) -> "History":
        """Read it back.

        Raises:
            OSError, msgspec.MsgspecError: not there, cut off, or not a history.
        """
        with gzip.open(path, "rb") as file:
            saved = msgspec.msgpack.decode(file.read(), type=_Saved)
        return cls(saved.calls, saved.operations, saved.faults, saved.healed_ns, saved.wall_offset_ms)
