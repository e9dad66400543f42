"""Signed requests as text, so that a fuzzer can alter any byte of them, and what such a request says."""

from typing import Final, NamedTuple

from couponsvc.support.signing import SignatureRefused, combine, verify
from couponsvc.support.signing.fields import InnerList, parse_dictionary
from tests.unit.grab_request import KEYS, NOW_S, PRIVATE, GrabRequest

_LINES_MIN_COUNT: Final = 1


class Message(NamedTuple):
    """A request: `method path query` in the first line, then `name: value` lines, an empty one, the body."""

    method: bytes
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def write_message(request: GrabRequest) -> bytes:
    """As `read_message` reads it."""
    lines = [b" ".join((request.method, request.raw_path, request.query))]
    lines += [name + b": " + value for name, value in request.headers]
    return b"\n".join(lines) + b"\n\n" + request.body


def read_message(data: bytes) -> Message | None:
    """None where it is no such text. Names are in lower case, as every server hands them on."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    parts = first.split(b" ")
    if len(parts) != 3:
        return None
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        headers.append((name.lower(), value.removeprefix(b" ")))
    return Message(parts[0], parts[1], parts[2], headers, body)


def accepted_as(message: Message) -> str | None:
    """The key id of a request that is accepted."""
    try:
        return verify(*message, KEYS.get, NOW_S)
    except SignatureRefused:
        return None


def meaning_of(message: Message, key_id: str) -> tuple[object, ...]:
    """What a signature of that key proves: method, path, query, body, and every field that it covers.

    The digest's field may say more than what it proves (RFC 9530 allows other algorithms); the body
    stands for it.
    """
    fields = combine(message.headers)
    covered: list[tuple[str, bytes | None]] = []
    for member in parse_dictionary(fields.get(b"signature-input", b"")).values():
        keyid = member.parameters.get(b"keyid")
        if isinstance(member, InnerList) and keyid is not None and keyid.value == key_id:
            names = [str(item.bare.value) for item in member.items]
            covered = [
                (name, fields.get(name.encode(), b"").strip(b" \t"))
                for name in names
                if not name.startswith("@") and name != "content-digest"
            ]
    return (message.method, message.raw_path or b"/", message.query, message.body, covered)


def _originals() -> list[bytes]:
    requests = [
        GrabRequest().signed(),
        GrabRequest(method=b"GET", query=b"after=7&limit=5", body=b"").signed(),
        GrabRequest().signed(PRIVATE),
        GrabRequest().signed_as(
            f'("@method" "@path" "host" "content-type" "@query");created={NOW_S};keyid="bank-a-1";nonce="a"'
        ),
    ]
    requests[-1] = GrabRequest(body=b"", query=b"a=%20b").signed_as(
        f'("@method" "host" "@query" "@path");nonce="x";keyid="bank-a-1";created={NOW_S}', label="other"
    )
    return [write_message(request) for request in requests]


SIGNED: Final = _originals()
"""The seeds of the target, and all that was ever signed."""


def _read(data: bytes) -> Message:
    message = read_message(data)
    assert message is not None
    assert accepted_as(message) is not None
    return message


ORIGINALS: Final = [_read(data) for data in SIGNED]
