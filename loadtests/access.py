"""What lets a load test in: a partner's key, an auditor's token and, to prepare drops, an operator's.

From a credentials file of the form that `couponsvc up` writes (each part may be missing), and from
the environment, which goes first. Nothing of it is ever sent to other workers, put on a command
line, written into a run directory or printed: each machine reads its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from couponsvc.client import CredentialsError
from couponsvc.client.credentials import signing_key
from couponsvc.support.signing import SigningKey

PARTNER_ID: Final = "LOAD_PARTNER_ID"
PARTNER_KEY_ID: Final = "LOAD_PARTNER_KEY_ID"
PARTNER_SECRET: Final = "LOAD_PARTNER_SECRET"  # noqa: S105 - the variable's name
OPERATOR_TOKEN: Final = "LOAD_OPERATOR_TOKEN"  # noqa: S105 - the variable's name
AUDITOR_TOKEN: Final = "LOAD_AUDITOR_TOKEN"  # noqa: S105 - the variable's name


class AccessError(ValueError):
    """Credentials are missing or cannot be used; the message is one line and shows no secret."""


@dataclass(frozen=True, slots=True)
class Access:
    """What this process may do. Secrets are kept out of `repr`."""

    key_id: str
    secret: str = field(repr=False)
    """Standard base64 of the HMAC key."""
    key: SigningKey = field(repr=False)
    partner_id: str = ""
    """Needed only to prepare drops."""
    operator_token: str = field(default="", repr=False)
    auditor_token: str = field(default="", repr=False)

    def environment(self) -> dict[str, str]:
        """The same, for a process that we start."""
        variables = {
            PARTNER_ID: self.partner_id,
            PARTNER_KEY_ID: self.key_id,
            PARTNER_SECRET: self.secret,
            OPERATOR_TOKEN: self.operator_token,
            AUDITOR_TOKEN: self.auditor_token,
        }
        return {name: value for name, value in variables.items() if value}


class _Token(msgspec.Struct):
    token: str = ""


class _Partner(msgspec.Struct):
    partner_id: str = ""
    key_id: str = ""
    secret: str = ""


class _File(msgspec.Struct):
    operator: _Token = msgspec.field(default_factory=_Token)
    auditor: _Token = msgspec.field(default_factory=_Token)
    partner: _Partner = msgspec.field(default_factory=_Partner)


def read_access(path: Path | None, environment: Mapping[str, str]) -> Access:
    """Read the file, if there is one, and the environment over it.

    Raises:
        AccessError: the file cannot be read, or there is no usable partner's key.
    """
    found = _File() if path is None else _read(path)

    def choose(name: str, from_file: str) -> str:
        return environment.get(name) or from_file

    key_id = choose(PARTNER_KEY_ID, found.partner.key_id)
    secret = choose(PARTNER_SECRET, found.partner.secret)
    if not (key_id and secret):
        raise AccessError(
            f"no partner's key: set {PARTNER_KEY_ID} and {PARTNER_SECRET}, or name a credentials file"
        )
    try:
        key = signing_key(key_id, secret)
    except CredentialsError as error:
        raise AccessError(str(error)) from None
    return Access(
        key_id=key_id,
        secret=secret,
        key=key,
        partner_id=choose(PARTNER_ID, found.partner.partner_id),
        operator_token=choose(OPERATOR_TOKEN, found.operator.token),
        auditor_token=choose(AUDITOR_TOKEN, found.auditor.token),
    )


def read_operator(path: Path | None, environment: Mapping[str, str]) -> tuple[str, str]:
    """An operator's token, and the partner who may grab; no partner's key is needed to prepare.

    Raises:
        AccessError: the file cannot be read, or one of the two is missing.
    """
    found = _File() if path is None else _read(path)
    token = environment.get(OPERATOR_TOKEN) or found.operator.token
    partner_id = environment.get(PARTNER_ID) or found.partner.partner_id
    if not (token and partner_id):
        raise AccessError(
            f"an operator is needed: set {OPERATOR_TOKEN} and {PARTNER_ID}, or name a credentials file"
        )
    return token, partner_id


def _read(path: Path) -> _File:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise AccessError(f"{path}: not a credentials file: {error}") from None
