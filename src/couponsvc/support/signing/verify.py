"""Verify a request's signature (RFC 9421) in a few microseconds."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from couponsvc import limits
from couponsvc.support.signing import coverage as cover
from couponsvc.support.signing.coverage import Coverage
from couponsvc.support.signing.digest import digest_refusal
from couponsvc.support.signing.fields import Item, MalformedField, decode_base64, parse_dictionary
from couponsvc.support.signing.inputs import SignatureInput, read_member, read_usual, recall, remember
from couponsvc.support.signing.keys import HmacKey, VerifyingKey
from couponsvc.support.signing.refusal import SignatureRefused, UnknownSigner

FIELD_MAX_BYTES: Final = 4_096
"""Of `Signature-Input` and of `Signature`: four signatures that cover ten fields each are under 2 KB."""
SIGNATURES_MAX_COUNT: Final = 4
"""Labels tried per request; each costs a verification."""

FindKey = Callable[[str], VerifyingKey | None]

_stranger: Final = HmacKey("", bytes(32))
"""Verified against where the key is unknown, so that the answer takes the same time."""


class Request(NamedTuple):
    """The parts of a request that a signature speaks of."""

    method: bytes | str
    """As received; case matters."""
    raw_path: bytes
    """As received, percent-encoded, without the query."""
    query: bytes
    """As received, without `?`."""
    fields: dict[bytes, bytes]
    """Result of `combine`; `verify_request` uses it up (derived components are added)."""
    body: bytes
    """The exact bytes received."""
    scheme: bytes = b"https"
    """Only for signatures that cover `"@scheme"` or `"@target-uri"`."""


def combine(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Header fields by name; several lines of one name joined by `, ` (RFC 9421 §2.1).

    Args:
        headers: As ASGI gives them, names in lower case.
    """
    lines = headers if isinstance(headers, list) else list(headers)
    fields = dict(lines)
    if len(fields) != len(lines):
        fields.clear()
        for name, value in lines:
            stripped = value.strip(b" \t")
            fields[name] = fields[name] + b", " + stripped if name in fields else stripped
    return fields


def verify(  # noqa: PLR0917 - a request has so many parts
    method: bytes | str,
    raw_path: bytes,
    query: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    find_key: FindKey,
    now_s: float,
    scheme: bytes = b"https",
) -> str:
    """As `verify_request`, from headers as ASGI gives them (`Request` describes the arguments)."""
    return verify_request(Request(method, raw_path, query, combine(headers), body, scheme), find_key, now_s)


def verify_request(request: Request, find_key: FindKey, now_s: float) -> str:
    """Prove who sent a request and that method, path, query and body are as signed.

    Args:
        request: What was received.
        find_key: The live key of a `keyid`, or None.
        now_s: Unix time in seconds.

    Returns:
        The `keyid` of a signature that verified.

    Raises:
        UnknownSigner: no signature verified, and one named a key that `find_key` does not know.
        SignatureRefused: otherwise; `reason` fits the `detail` of a 401.
    """
    method, raw_path, query, fields, _, _ = request
    given = fields.get(b"signature-input")
    signatures = fields.get(b"signature")
    if given is None or signatures is None:
        raise SignatureRefused("signature-input and signature are required: sign the request (RFC 9421)")
    try:
        fields[cover.METHOD] = method if isinstance(method, bytes) else method.encode("ascii")
    except UnicodeEncodeError:
        raise SignatureRefused("the method is not ASCII") from None
    fields[cover.PATH] = raw_path or b"/"
    fields[cover.QUERY] = b"?" + query

    remembered = recall(given)
    if remembered is not None:
        return _verify_one(remembered, signatures, request, find_key, now_s)
    if len(given) > FIELD_MAX_BYTES or len(signatures) > FIELD_MAX_BYTES:
        raise SignatureRefused(f"signature-input and signature may have {FIELD_MAX_BYTES} bytes each")
    single = read_usual(given)
    if single is None:
        return _verify_any(given, signatures, request, find_key, now_s)
    key_id = _verify_one(single, signatures, request, find_key, now_s)
    remember(given, single)
    return key_id


def _verify_any(given: bytes, signatures: bytes, request: Request, find_key: FindKey, now_s: float) -> str:
    """Try every label; the first that satisfies all rules counts."""
    try:
        members = parse_dictionary(given)
    except MalformedField as error:
        raise SignatureRefused(f"signature-input cannot be read (RFC 8941): {error}") from None
    if not 0 < len(members) <= SIGNATURES_MAX_COUNT:
        raise SignatureRefused(f"send 1 to {SIGNATURES_MAX_COUNT} signatures, got {len(members)}")
    reasons: list[str] = []
    unknown: str | None = None
    for label, member in members.items():
        try:
            return _verify_one(read_member(label, member), signatures, request, find_key, now_s)
        except UnknownSigner as refusal:
            unknown = unknown or refusal.key_id
            reasons.append(refusal.reason)
        except SignatureRefused as refusal:
            reasons.append(refusal.reason)
    reason = reasons[0] if len(reasons) == 1 else "no signature is accepted: " + "; ".join(reasons)
    if unknown is not None:
        raise UnknownSigner(reason, unknown)
    raise SignatureRefused(reason)


def _verify_one(
    candidate: SignatureInput, signatures: bytes, request: Request, find_key: FindKey, now_s: float
) -> str:
    """Cheap checks first, then the signature, then the body's digest: a stranger's body is never hashed."""
    label, prefix, coverage, template, created, expires, key_id, algorithm = candidate
    _, _, query, fields, body, scheme = request
    if not -limits.SIGNATURE_WINDOW_S <= now_s - created <= limits.SIGNATURE_WINDOW_S:
        raise SignatureRefused(_window_reason(now_s - created))
    if expires is not None and expires < now_s:
        raise SignatureRefused(f"the signature expired {now_s - expires:.0f} s ago: sign again")
    if query and not coverage.covers_query:
        raise SignatureRefused('"@query" is not covered and the request has a query: add it to the signature')
    if body and not coverage.covers_body:
        raise SignatureRefused('"content-digest" is not covered and the request has a body: add it')
    if coverage.derives_more:
        cover.derive_more(fields, query, scheme)
    base = _signature_base(coverage, template, fields)
    signature = _signature_of(label, prefix, signatures)
    key = find_key(key_id)
    if key is None:
        _stranger.verifies(base, signature)
        raise UnknownSigner(_mismatch_reason(key_id), key_id)
    if not key.verifies(base, signature) or (algorithm is not None and algorithm != key.algorithm):
        raise SignatureRefused(_mismatch_reason(key_id))
    if coverage.covers_body:
        reason = digest_refusal(fields[cover.CONTENT_DIGEST], body)
        if reason is not None:
            raise SignatureRefused(reason)
    return key_id


def _signature_base(coverage: Coverage, template: bytes, fields: dict[bytes, bytes]) -> bytes:
    """The bytes that were signed (RFC 9421 §2.5)."""
    try:
        for name in coverage.fields:
            fields[name] = fields[name].strip(b" \t")
        base = template % coverage.pick(fields)
    except KeyError as missing:
        name = missing.args[0].decode("ascii", "replace")
        raise SignatureRefused(f'"{name}" is covered but the request has none: send it as signed') from None
    if base.count(b"\n") != coverage.line_count or not base.isascii():
        raise SignatureRefused("a covered value has a line break or a byte outside ASCII")
    return base


def _signature_of(label: bytes, prefix: bytes, signatures: bytes) -> bytes:
    """The signature under `label`."""
    if signatures.startswith(prefix) and signatures.endswith(b":"):
        decoded = decode_base64(signatures[len(prefix) : -1])
        if decoded is not None:
            return decoded
    try:
        member = parse_dictionary(signatures).get(label)
    except MalformedField as error:
        raise SignatureRefused(f"signature cannot be read (RFC 8941): {error}") from None
    if not isinstance(member, Item) or not isinstance(member.bare.value, bytes):
        raise SignatureRefused(f"signature has no byte sequence under the label {label[:64].decode()}")
    return member.bare.value


def _window_reason(age_s: float) -> str:
    side = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s ahead"
    return f"created is {side}; the window is {limits.SIGNATURE_WINDOW_S} s: check the clock"


def _mismatch_reason(key_id: str) -> str:
    return f'the signature does not verify with key "{key_id}": check keyid, secret, alg and signature base'
