"""Reading the head of a usual grab in one pass, or not at all.

What is read here is a strict part of HTTP/1.1 (RFC 9112): one request line of ours, field lines
without folding or odd bytes, and a body whose length is stated once. Whatever differs in
anything, even if it is allowed, is left to the HTTP parser; so nothing is ever read here that the
parser would read otherwise (tests/property compares the two).
"""

import re
from typing import Final, NamedTuple

from couponsvc import limits

BEGINS_WITH: Final = b"POST /v1/drops/"
_REQUEST: Final = re.compile(
    rb"POST (/v1/drops/([a-z0-9][a-z0-9-]{1,62})/grabs) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9-]+: [!-~][ -~]*\r\n)+)\r\n"
)
_FIELDS: Final = re.compile(rb"([A-Za-z0-9-]+): ([ -~]+)\r\n").findall
_FRAMING: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer", b"te"})
"""Fields that change how a message is read or answered."""
_KEEP_ALIVE: Final = b"keep-alive"
LENGTH_MAX_DIGITS: Final = 4
HEAD_MAX_BYTES: Final = 16_384
"""A signed grab's head has about 700."""


class ExpressHead(NamedTuple):
    """The head of a grab."""

    drop_id: str
    raw_path: bytes
    fields: dict[bytes, bytes]
    """By name in lower case; each name once."""
    body_begin: int
    """Offset of the body's first byte."""
    body_end: int


def read_head(data: bytes) -> ExpressHead | None:
    """The head at the beginning of `data`; None where it is for the HTTP parser."""
    request = _REQUEST.match(data, 0, HEAD_MAX_BYTES)
    if request is None:
        return None
    raw_path, drop_id, field_lines = request.groups()
    lines = _FIELDS(field_lines)
    fields = {name.lower(): value for name, value in lines}
    if len(fields) != len(lines):
        return None  # a field in several lines
    if not _is_usual(fields):
        return None
    begin = request.end()
    end = begin + int(fields[b"content-length"])
    return ExpressHead(drop_id.decode("ascii"), raw_path, fields, begin, end)


def _is_usual(fields: dict[bytes, bytes]) -> bool:
    """Whether the body is framed by its length alone and the connection stays as it is."""
    length = fields.get(b"content-length", b"")
    return (
        length.isdigit()
        and len(length) <= LENGTH_MAX_DIGITS
        and 0 < int(length) <= limits.GRAB_BODY_MAX_BYTES
        and b"host" in fields
        and _FRAMING.isdisjoint(fields)
        and fields.get(b"connection", _KEEP_ALIVE).lower() == _KEEP_ALIVE
    )
