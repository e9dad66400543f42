"""Read an Ed25519 public key as partners hand it over."""

import base64
import binascii
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from couponsvc.support.signing.keys import ED25519_KEY_BYTES

PEM_START: Final = "-----BEGIN PUBLIC KEY-----"


class BadPublicKey(ValueError):
    """Not an Ed25519 public key; the message says what is wanted."""


def read_public_key(text: str) -> bytes:
    """The 32 raw bytes of a key given as their base64 or as PEM (SubjectPublicKeyInfo).

    Raises:
        BadPublicKey: it is neither.
    """
    text = text.strip()
    if text.startswith("-----"):
        try:
            key = load_pem_public_key(text.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise BadPublicKey(f"the PEM is no public key; it starts with {PEM_START}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise BadPublicKey("the PEM is not of an Ed25519 key")
        return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadPublicKey("an Ed25519 public key is given as base64 of 32 bytes, or as PEM") from None
    if len(raw) != ED25519_KEY_BYTES:
        raise BadPublicKey(f"an Ed25519 public key has {ED25519_KEY_BYTES} bytes, got {len(raw)}")
    return raw
