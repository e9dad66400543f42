"""What the gate says of a grab, and what the ledger says of a grant."""

import enum
from typing import assert_never


class Outcome(enum.Enum):
    """The gate's verdict on one grab, in order of precedence: first match wins.

    The value is the one-byte code that `gate/lua/grab_batch.lua` returns; a
    check at import of the binding compares both lists.
    """

    FENCED = "F"
    """The epoch is not the published one, or the drop's state is not loaded."""
    REPEATED = "R"
    """This person was granted under this number before, and it is committed."""
    REPEATED_PENDING = "P"
    """This person was granted under this number before; the commit is not noted yet."""
    RATE_LIMITED = "T"
    """The partner has used up its rate; a repeated number may go one burst further."""
    PAUSED = "Z"
    """An operator has paused the drop."""
    ENDED = "E"
    """The window is over, by the clock of Redis, or an operator closed the drop."""
    NOT_STARTED = "N"
    """The window has not opened, by the clock of Redis."""
    PERSON_LIMIT = "L"
    """The person holds as many vouchers of this drop as one may."""
    SOLD_OUT_PENDING = "S"
    """Nothing is available, but a pending grant may still come back."""
    SOLD_OUT = "X"
    """Nothing is available and Postgres has issued the whole quantity."""
    OVERLOADED = "B"
    """The backlog is at its cap; refused before stock was taken."""
    GRANTED = "G"
    """A unit was taken and its grant is on the stream."""

    @property
    def granted(self) -> bool:
        """Whether a grant exists for this grab's number."""
        return self in _GRANTED

    @property
    def transient(self) -> bool:
        """Whether the same grab could be answered otherwise later."""
        match self:
            case (
                Outcome.FENCED
                | Outcome.REPEATED_PENDING
                | Outcome.RATE_LIMITED
                | Outcome.PAUSED
                | Outcome.NOT_STARTED
                | Outcome.SOLD_OUT_PENDING
                | Outcome.OVERLOADED
                | Outcome.GRANTED
            ):
                return True
            case Outcome.REPEATED | Outcome.ENDED | Outcome.PERSON_LIMIT | Outcome.SOLD_OUT:
                return False
            case _:
                assert_never(self)

    @property
    def carries_note(self) -> bool:
        """Whether the script returns a note beside the code (see grab_batch.lua)."""
        return self in _WITH_NOTE


_GRANTED = frozenset({Outcome.GRANTED, Outcome.REPEATED, Outcome.REPEATED_PENDING})
_WITH_NOTE = frozenset({Outcome.REPEATED, Outcome.NOT_STARTED, Outcome.ENDED, Outcome.PERSON_LIMIT})


class Verdict(enum.IntEnum):
    """What the ledger says of one grant. Travels in confirmations as its integer."""

    COMMITTED = 1
    """The voucher row stands for this grab: inserted now, or by an earlier run of the same grant."""
    HELD = 2
    """The person already holds the voucher(s) allowed, under another number; the unit never existed."""
    MISMATCH = 3
    """The number stands for another person or drop; the unit existed and goes back."""
    EXCEEDED = 4
    """The quantity is issued already; the unit never existed and must not go back."""
    STALE = 5
    """Granted under an epoch that Postgres has closed; ask again with the same number."""

    @property
    def returns_unit(self) -> bool:
        """Whether the unit really existed and goes back to stock (same epoch only)."""
        return self is Verdict.MISMATCH
