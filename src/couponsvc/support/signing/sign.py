"""Sign a request (RFC 9421) the way `verify` wants it."""

from binascii import b2a_base64
from collections.abc import Sequence
from typing import Final

from couponsvc.support.signing.digest import content_digest
from couponsvc.support.signing.keys import SigningKey

LABEL: Final = b"sig"


def sign(
    key: SigningKey,
    method: bytes,
    raw_path: bytes,
    query: bytes = b"",
    body: bytes = b"",
    *,
    created_s: int,
    covered: Sequence[tuple[bytes, bytes]] = (),
    nonce: str | None = None,
) -> list[tuple[bytes, bytes]]:
    """Headers to add to a request so that it is proven.

    Args:
        key: Whose request it is.
        method: Upper case.
        raw_path: As it will be sent, percent-encoded, without the query.
        query: As it will be sent, without `?`.
        body: The exact bytes that will be sent.
        created_s: Unix time in seconds.
        covered: Further header fields to cover, `(lower-case name, value as sent)`.
        nonce: Visible ASCII without `"` and backslash; grabs need none.

    Returns:
        `Content-Digest` where there is a body, `Signature-Input`, `Signature`; names in lower case.
    """
    components = [(b"@method", method), (b"@path", raw_path)]
    added: list[tuple[bytes, bytes]] = []
    if query:
        components.append((b"@query", b"?" + query))
    if body:
        digest = (b"content-digest", content_digest(body))
        components.append(digest)
        added.append(digest)
    components.extend(covered)
    names = b'" "'.join([name for name, _ in components])
    parameters = b'("%b");created=%d;keyid="%b"' % (names, created_s, key.key_id.encode("ascii"))
    if nonce is not None:
        parameters += b';nonce="%b"' % nonce.encode("ascii")
    lines = [b'"%b": %b' % component for component in components]
    lines.append(b'"@signature-params": ' + parameters)
    signature = b2a_base64(key.sign(b"\n".join(lines)), newline=False)
    added.extend(
        [
            (b"signature-input", LABEL + b"=" + parameters),
            (b"signature", LABEL + b"=:" + signature + b":"),
        ]
    )
    return added
