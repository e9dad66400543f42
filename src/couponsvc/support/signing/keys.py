"""Keys that sign and verify: the algorithm is part of the key, so a request cannot choose it."""

from hmac import compare_digest
from typing import ClassVar, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HMAC_SECRET_MIN_BYTES: Final = 32
"""As long as the hash: shorter secrets are easier to guess than the signature (RFC 2104 §3)."""
ED25519_KEY_BYTES: Final = 32
HMAC_SHA256: Final = "hmac-sha256"
ED25519: Final = "ed25519"
ALGORITHMS: Final = frozenset({HMAC_SHA256, ED25519})


class WeakKey(ValueError):
    """Key material of the wrong length or form; the message says what is wanted, never the key."""


class VerifyingKey(Protocol):
    """What `verify` needs of a key."""

    @property
    def key_id(self) -> str:
        """The `keyid` of signatures made with it."""

    @property
    def algorithm(self) -> str:
        """Name in the RFC 9421 registry."""

    def verifies(self, base: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `base`; constant time for secrets."""


class SigningKey(Protocol):
    """What `sign` needs of a key."""

    @property
    def key_id(self) -> str:
        """The `keyid` of signatures made with it."""

    @property
    def algorithm(self) -> str:
        """Name in the RFC 9421 registry."""

    def sign(self, base: bytes) -> bytes:
        """Signature over `base`."""


class HmacKey:
    """A shared secret (hmac-sha256, RFC 9421 §3.3.3): signs and verifies.

    Args:
        key_id: Its `keyid`.
        secret: 32 bytes or more.

    Raises:
        WeakKey: the secret is shorter.
    """

    __slots__ = ("_keyed", "key_id")
    algorithm: ClassVar[str] = HMAC_SHA256

    def __init__(self, key_id: str, secret: bytes) -> None:
        if len(secret) < HMAC_SECRET_MIN_BYTES:
            raise WeakKey(f"an HMAC secret needs {HMAC_SECRET_MIN_BYTES} bytes or more, got {len(secret)}")
        self.key_id: Final = key_id
        # The padded key is hashed once; a signature continues from a copy (2 µs instead of 5).
        self._keyed: Final = HMAC(secret, SHA256())

    def sign(self, base: bytes) -> bytes:
        """Signature over `base`, 32 bytes."""
        mac = self._keyed.copy()
        mac.update(base)
        return mac.finalize()

    def verifies(self, base: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `base`, in constant time."""
        mac = self._keyed.copy()
        mac.update(base)
        return compare_digest(mac.finalize(), signature)

    def __repr__(self) -> str:
        return f"HmacKey({self.key_id!r})"


class Ed25519Key:
    """A partner's public key (ed25519, RFC 9421 §3.3.6): verifies only.

    Args:
        key_id: Its `keyid`.
        public_key: 32 raw bytes (RFC 8032).

    Raises:
        WeakKey: not 32 bytes.
    """

    __slots__ = ("_public", "key_id")
    algorithm: ClassVar[str] = ED25519

    def __init__(self, key_id: str, public_key: bytes) -> None:
        if len(public_key) != ED25519_KEY_BYTES:
            raise WeakKey(f"an Ed25519 public key has {ED25519_KEY_BYTES} bytes, got {len(public_key)}")
        self.key_id: Final = key_id
        self._public: Final = Ed25519PublicKey.from_public_bytes(public_key)

    def verifies(self, base: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `base`."""
        try:
            self._public.verify(signature, base)
        except InvalidSignature:
            return False
        return True

    def __repr__(self) -> str:
        return f"Ed25519Key({self.key_id!r})"


class Ed25519SigningKey:
    """A private key, for clients; the service itself never holds one.

    Args:
        key_id: Its `keyid`.
        private_key: 32 raw bytes (RFC 8032 seed).

    Raises:
        WeakKey: not 32 bytes.
    """

    __slots__ = ("_private", "key_id")
    algorithm: ClassVar[str] = ED25519

    def __init__(self, key_id: str, private_key: bytes) -> None:
        if len(private_key) != ED25519_KEY_BYTES:
            raise WeakKey(f"an Ed25519 private key has {ED25519_KEY_BYTES} bytes, got {len(private_key)}")
        self.key_id: Final = key_id
        self._private: Final = Ed25519PrivateKey.from_private_bytes(private_key)

    def sign(self, base: bytes) -> bytes:
        """Signature over `base`, 64 bytes."""
        return self._private.sign(base)

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes to hand to the service."""
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def __repr__(self) -> str:
        return f"Ed25519SigningKey({self.key_id!r})"
