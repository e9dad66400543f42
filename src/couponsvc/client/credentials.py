"""Credentials as `couponsvc up` writes them: `<data-dir>/credentials.json`, mode 0600."""

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from couponsvc.support.signing import HmacKey, WeakKey

FILE_NAME = "credentials.json"


class CredentialsError(ValueError):
    """The credentials cannot be used; the message is one line and shows no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Development credentials of one installation. Secrets are kept out of `repr`."""

    operator_token: str = field(repr=False)
    auditor_token: str = field(repr=False)
    partner_id: str
    key_id: str
    secret: str = field(repr=False)
    """Standard base64 of the HMAC key."""

    def signing_key(self) -> HmacKey:
        """Make the key that signs the partner's requests.

        Raises:
            CredentialsError: the secret is no base64 or too short.
        """
        return signing_key(self.key_id, self.secret)


def signing_key(key_id: str, secret: str) -> HmacKey:
    """Make a key from the base64 that was shown when the partner was admitted.

    Raises:
        CredentialsError: the secret is no base64 or too short.
    """
    try:
        return HmacKey(key_id, base64.b64decode(secret, validate=True))
    except (binascii.Error, WeakKey) as error:
        raise CredentialsError(f"the secret of key {key_id} cannot be used: {error}") from error


class _Token(msgspec.Struct):
    token: str


class _Partner(msgspec.Struct):
    partner_id: str
    key_id: str
    secret: str


class _File(msgspec.Struct):
    operator: _Token
    auditor: _Token
    partner: _Partner


def read_credentials(data_dir: Path) -> Credentials:
    """Read `<data-dir>/credentials.json`.

    Raises:
        CredentialsError: no such file, no right to read it, or not of the expected form.
    """
    path = data_dir / FILE_NAME
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise CredentialsError(
            f"{path}: {error.strerror}; start `couponsvc up` first, or pass --token"
        ) from error
    except msgspec.MsgspecError as error:
        raise CredentialsError(f"{path}: not a credentials file: {error}") from error
    return Credentials(
        found.operator.token,
        found.auditor.token,
        found.partner.partner_id,
        found.partner.key_id,
        found.partner.secret,
    )
