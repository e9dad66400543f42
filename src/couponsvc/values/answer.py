"""The final answer to one grab, whoever found it: gate, confirmation or ledger."""

import enum
from typing import NamedTuple


class AnswerKind(enum.IntEnum):
    """What a grab is told in the end. One member per row of the contract's answer table.

    Integers only because they hash in C, and every answer is counted.
    """

    CONFIRMED = enum.auto()
    """Committed in Postgres for this request: the voucher."""
    REPEATED = enum.auto()
    """Committed before under this number: the byte-identical voucher."""
    PENDING = enum.auto()
    """Decided; the commit was not seen in time, or the caller did not want to wait."""
    SOLD_OUT_PENDING = enum.auto()
    SOLD_OUT = enum.auto()
    PERSON_LIMIT = enum.auto()
    """Carries the voucher held where it is committed (seq > 0)."""
    MISMATCH = enum.auto()
    NOT_STARTED = enum.auto()
    """`moment_ms` is when the drop opens."""
    ENDED = enum.auto()
    PAUSED = enum.auto()
    OVERLOADED = enum.auto()
    RATE_LIMITED = enum.auto()
    CLOSED = enum.auto()
    """The gate is closed: nothing was decided. `reason` is the problem code."""
    LOST = enum.auto()
    """The gate's reply was lost: a grant may exist."""
    AGAIN = enum.auto()
    """Never told: the caller reads the drop anew and submits the same grab once more."""


class Answer(NamedTuple):
    """A final answer; what does not apply stays at its default."""

    kind: AnswerKind
    seq: int = 0
    issued_ms: int = 0
    code: str = ""
    out_request_no: str = ""
    """Of the voucher carried, which for PERSON_LIMIT is not the grab's own."""
    moment_ms: int = 0
    reason: str = ""
