"""Secrets at rest: sealed (to be used again) or hashed with a key (to be recognised only).

Everything hangs on one master key of 32 bytes. Each purpose has its own key derived from
it (HKDF-SHA256, RFC 5869), so that what was sealed for one purpose cannot be opened for
another. A sealed value is `version byte | 12-byte random nonce | AES-256-GCM ciphertext and tag`.

A random 96-bit nonce is safe for 2^32 values per derived key (NIST SP 800-38D §8.3);
here a key seals some thousands.
"""

import base64
import binascii
import os
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MASTER_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
VERSION: Final = b"\x01"
"""First byte of a sealed value: which construction (and in future which master key) made it."""


class BadMasterKey(ValueError):
    """The master key is not 32 bytes in base64. The message never shows it."""


class CannotOpen(ValueError):
    """A sealed value was altered, cut, made for another purpose or owner, or under another master key."""


class MasterKey:
    """Seals, opens and hashes. Its repr shows nothing.

    Args:
        key: 32 random bytes.

    Raises:
        BadMasterKey: another length.
    """

    __slots__ = ("_ciphers", "_key", "_token_mac")

    def __init__(self, key: bytes) -> None:
        if len(key) != MASTER_KEY_BYTES:
            raise BadMasterKey(f"the master key has {len(key)} bytes and needs {MASTER_KEY_BYTES}")
        self._key: Final = key
        self._ciphers: Final[dict[str, AESGCM]] = {}
        self._token_mac: Final = HMAC(self._derive(b"token hash v1"), SHA256())

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Read a key as settings hold it: standard base64, padded.

        Raises:
            BadMasterKey: not base64 of exactly 32 bytes.
        """
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise BadMasterKey("the master key is not base64; make one: openssl rand -base64 32") from None
        return cls(key)

    @classmethod
    def generate(cls) -> Self:
        """Make a new random key."""
        return cls(os.urandom(MASTER_KEY_BYTES))

    def to_base64(self) -> str:
        """The key itself, to be written into a file only its owner can read."""
        return base64.b64encode(self._key).decode("ascii")

    def seal(self, plain: bytes, purpose: str, owner: str = "") -> bytes:
        """Encrypt `plain`.

        Args:
            plain: What to keep secret.
            purpose: A constant of the caller; chooses the derived key.
            owner: Whose secret it is (authenticated, not stored), so that a sealed value
                copied to another row cannot be opened there.
        """
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._cipher(purpose).encrypt(nonce, plain, VERSION + owner.encode())

    def open(self, sealed: bytes, purpose: str, owner: str = "") -> bytes:
        """Decrypt what `seal` made with the same purpose and owner.

        Raises:
            CannotOpen: it is anything else.
        """
        if sealed[:1] != VERSION or len(sealed) < 1 + NONCE_BYTES + TAG_BYTES:
            raise CannotOpen(f"a sealed {purpose} has an unknown form: was it written by a newer version?")
        nonce, encrypted = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return self._cipher(purpose).decrypt(nonce, encrypted, VERSION + owner.encode())
        except InvalidTag:
            raise CannotOpen(
                f"a sealed {purpose} cannot be opened: was it sealed with this master key?"
            ) from None

    def token_hash(self, token: str) -> bytes:
        """Keyed hash of a bearer token (HMAC-SHA256, 32 bytes); all that is stored of it.

        Tokens are random and long, so no slow hash is needed; the key makes a leaked table
        useless for checking guesses.
        """
        mac = self._token_mac.copy()
        mac.update(token.encode("utf-8", "surrogatepass"))
        return mac.finalize()

    def _cipher(self, purpose: str) -> AESGCM:
        cipher = self._ciphers.get(purpose)
        if cipher is None:  # purposes are constants: a handful per process
            cipher = self._ciphers[purpose] = AESGCM(self._derive(b"seal v1 " + purpose.encode()))
        return cipher

    def _derive(self, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=MASTER_KEY_BYTES, salt=None, info=info).derive(self._key)

    def __repr__(self) -> str:
        return "MasterKey(…)"

    def __reduce__(self) -> str:
        raise TypeError("a master key is not pickled: hand over its base64 by the environment")
