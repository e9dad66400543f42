"""Signatures of webhooks as Standard Webhooks 1.0 has them: what receivers' libraries verify.

Signed is `<webhook-id>.<webhook-timestamp>.<body>` with HMAC-SHA256. The header may carry several
signatures, so that a receiver may change over from an old secret to a new one without a gap.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hmac
import os
from collections.abc import Mapping, Sequence
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the form of a secret, not one
SECRET_BYTES: Final = 32
"""As long as the hash. The specification asks for 24 to 64."""
SECRET_MIN_BYTES: Final = 24
SECRET_MAX_BYTES: Final = 64
TOLERANCE_S: Final = 300
"""How far a timestamp may lie from the receiver's clock: what is older could be a replay."""
ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
SIGNATURES_MAX_COUNT: Final = 16
"""Read from one header; a sender has one per live secret and version."""
TIMESTAMP_MAX_DIGITS: Final = 15

_VERSION: Final = "v1"


class BadWebhookSignature(ValueError):
    """The message is not proven: do not act upon it. The text says why and shows no secret."""


class BadWebhookSecret(ValueError):
    """A secret that is not `whsec_` and 24 to 64 bytes in base64. The text does not show it."""


def new_secret() -> str:
    """Make a secret of a subscription, as its receiver configures it."""
    return SECRET_PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode("ascii")


def sign(secrets: Sequence[str], message_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` header: one signature per secret, in their order.

    Args:
        secrets: All that are live, the newest first; at least one.
        message_id: The `webhook-id` header; the same for every attempt.
        timestamp_s: The `webhook-timestamp` header: seconds since 1970, of this attempt.
        body: The very bytes that are sent.

    Raises:
        BadWebhookSecret: a secret has another form.
    """
    if not secrets:
        raise BadWebhookSecret("no secret to sign with")
    content = _signed_content(message_id, str(timestamp_s), body)
    return " ".join(
        f"{_VERSION},{base64.b64encode(_mac(secret, content)).decode('ascii')}" for secret in secrets
    )


def verify(
    secrets: Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now_s: int,
    tolerance_s: int = TOLERANCE_S,
) -> None:
    """Check that a message comes from who shares a secret with us, unaltered and not long ago.

    Args:
        secrets: Those that are accepted; one match suffices.
        headers: Of the request; names in any case.
        body: Its very bytes, before any parsing.
        now_s: The receiver's clock, seconds since 1970.
        tolerance_s: How far the timestamp may lie from it, either way.

    Raises:
        BadWebhookSignature: it is not proven.
        BadWebhookSecret: a secret has another form.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (
            given[name] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)
        )
    except KeyError as missing:
        raise BadWebhookSignature(f"the header {missing.args[0]} is missing") from None
    sent_s = _read_timestamp(timestamp)
    if abs(now_s - sent_s) > tolerance_s:
        age = "old" if sent_s < now_s else "far ahead: compare the clocks"
        raise BadWebhookSignature(f"the {TIMESTAMP_HEADER} is too {age}")
    content = _signed_content(message_id, timestamp, body)
    candidates = [_read_signature(text) for text in signatures.split(" ", SIGNATURES_MAX_COUNT)]
    expected = [_mac(secret, content) for secret in secrets]
    if not any(hmac.compare_digest(mac, candidate) for mac in expected for candidate in candidates):
        raise BadWebhookSignature("no signature is of this secret: is it the subscription's newest?")


def secret_bytes(secret: str) -> bytes:
    """The key of a secret.

    Raises:
        BadWebhookSecret: it has another form.
    """
    prefix, encoded = secret[: len(SECRET_PREFIX)], secret[len(SECRET_PREFIX) :]
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        prefix, key = "", b""
    if prefix != SECRET_PREFIX:
        raise BadWebhookSecret(f"a secret is {SECRET_PREFIX} and standard base64")
    if not SECRET_MIN_BYTES <= len(key) <= SECRET_MAX_BYTES:
        raise BadWebhookSecret(f"a secret has {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes, not {len(key)}")
    return key


def _mac(secret: str, content: bytes) -> bytes:
    return hmac.digest(secret_bytes(secret), content, "sha256")


def _signed_content(message_id: str, timestamp: str, body: bytes) -> bytes:
    return b"%s.%s.%s" % (message_id.encode(), timestamp.encode(), body)


def _read_timestamp(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= TIMESTAMP_MAX_DIGITS):
        raise BadWebhookSignature(f"the {TIMESTAMP_HEADER} is not a whole number of seconds")
    return int(text)


def _read_signature(text: str) -> bytes:
    """The MAC of one `v1,<base64>`; empty, which matches nothing, for other versions and forms."""
    version, _, encoded = text.partition(",")
    if version != _VERSION:
        return b""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return b""
