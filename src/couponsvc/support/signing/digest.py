"""Content-Digest (RFC 9530): the signature covers this field, and this field covers the body."""

import re
from binascii import b2a_base64
from hashlib import sha256
from typing import Final

_MEMBER: Final = re.compile(rb"([a-z*][a-z0-9_.*-]*+)=:([A-Za-z0-9+/]*+={0,2}):")
_COMMA: Final = re.compile(rb"[ \t]*+,[ \t]*+")
FIELD_MAX_BYTES: Final = 1_024
"""sha-512 and sha-256 together need 164."""


def content_digest(body: bytes) -> bytes:
    """Value of `Content-Digest` for `body`: `sha-256=:<base64>:`."""
    return b"sha-256=:" + b2a_base64(sha256(body).digest(), newline=False) + b":"


def digest_refusal(field: bytes, body: bytes) -> str | None:
    """Why `field` does not prove `body`; None where it does.

    Other algorithms may stand beside sha-256 and are not looked at; two different
    sha-256 members are refused rather than guessed between.
    """
    expected = content_digest(body)
    if field == expected:
        return None
    members = _sha256_members(field)
    if members is None:
        return "content-digest cannot be read; write sha-256=:<base64>: (RFC 9530)"
    if not members:
        return "content-digest has no sha-256; add sha-256=:<base64>: (RFC 9530)"
    if any(b"sha-256=:" + member + b":" != expected for member in members):
        return "content-digest is not that of the body received: hash the exact bytes that are sent"
    return None


def _sha256_members(field: bytes) -> list[bytes] | None:
    """Base64 text of every sha-256 member; None where the field is not a dictionary of byte sequences."""
    if len(field) > FIELD_MAX_BYTES:
        return None
    members: list[bytes] = []
    position = 0
    while True:
        member = _MEMBER.match(field, position)
        if member is None:
            return None
        if member[1] == b"sha-256":
            members.append(member[2])
        position = member.end()
        if position == len(field):
            return members
        comma = _COMMA.match(field, position)
        if comma is None:
            return None
        position = comma.end()
