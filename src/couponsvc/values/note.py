"""The note kept beside each holder: what was granted, and once known, what was committed.

Pending: `<out_request_no>`. Committed: `<out_request_no> <seq> <issued_ms> <code>`.
A space separates, because no out_request_no may contain one.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Note(NamedTuple):
    """A parsed note. `seq` is 0 while the grant is pending."""

    out_request_no: str
    seq: int
    issued_ms: int
    code: str

    @property
    def committed(self) -> bool:
        return self.seq > 0


def write_note(out_request_no: str, seq: int, issued_ms: int, code: str) -> str:
    """Write the note of a committed grant."""
    return f"{out_request_no} {seq} {issued_ms} {code}"


def read_note(text: str) -> Note:
    """Read a note as Redis returned it.

    Raises:
        ValueError: the text is not a note; the holder hash was written by something else.
    """
    parts = text.split(" ")
    if len(parts) == 1:
        return Note(parts[0], 0, 0, "")
    out_request_no, seq, issued_ms, code = parts
    return Note(out_request_no, int(seq), int(issued_ms), code)


def holder_field(ordinal: int, holder: str) -> str:
    """Field of a holders hash: the `ordinal`-th voucher of this person, counted from 1."""
    return f"{ordinal}:{holder}"


def committed_pairs(
    holders: Iterable[tuple[int, str]], written: Iterable[tuple[str, int, int, str]]
) -> list[str]:
    """`[field, note, …]` of committed grants, as `holder_field` and `write_note` say, many at once.

    Args:
        holders: `(ordinal, holder)` of each.
        written: `(out_request_no, seq, issued_ms, code)` of each, same order.
    """
    fields = [f"{ordinal}:{holder}" for ordinal, holder in holders]
    pairs = fields + fields
    pairs[::2] = fields
    pairs[1::2] = [f"{number} {seq} {issued_ms} {code}" for number, seq, issued_ms, code in written]
    return pairs
