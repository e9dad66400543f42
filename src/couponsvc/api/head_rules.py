"""Which heads are refused although the HTTP parser reads them: RFC 9112 asks it of servers, llhttp does not.

Each is something that a proxy in front of us may have read otherwise, so that it and we disagree on
where a request ends or whom it is for (request smuggling).
"""

from collections.abc import Sequence
from typing import Final

from couponsvc import limits
from couponsvc.api import connection_refusals as refusals
from couponsvc.api.connection_refusals import Refusal

_CHUNKED: Final = b"chunked"
_BESIDE_A_FIELD_BYTES: Final = 4
"""Colon, space and line end."""


def refusal_of_head(
    target: bytes, headers: Sequence[tuple[bytes, bytes]], version: str, *, upgrades: bool
) -> Refusal | None:
    """Why a request is not answered, or None.

    Args:
        target: as received.
        headers: names in lower case.
        version: `1.0` or `1.1`.
        upgrades: whether the parser will take what follows for another protocol.
    """
    if len(headers) > limits.HEADERS_MAX_COUNT:
        return refusals.HEAD_TOO_LARGE
    size = len(target)
    hosts_count = 0
    codings: list[bytes] = []
    has_length = False
    for name, value in headers:
        size += len(name) + len(value) + _BESIDE_A_FIELD_BYTES
        if name == b"host":
            hosts_count += 1
        elif name == b"transfer-encoding":
            codings.append(value.strip(b" \t").lower())
        elif name == b"content-length":
            has_length = True
    if size > limits.HEAD_MAX_BYTES:
        return refusals.HEAD_TOO_LARGE
    is_old = version != "1.1"
    if hosts_count > 1 or (hosts_count == 0 and not is_old) or b"#" in target:  # §3.2, §3.2.1
        return refusals.MALFORMED
    if codings and (codings != [_CHUNKED] or has_length or is_old):  # §6.1
        return refusals.MALFORMED
    if upgrades and (codings or has_length):  # the parser would not read its body
        return refusals.MALFORMED
    return None
