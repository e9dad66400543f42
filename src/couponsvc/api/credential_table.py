"""All live credentials in memory: one snapshot of what Postgres holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Self

import asyncpg
import structlog

from couponsvc.api.principal import Principal
from couponsvc.programs.live_credentials import rate_of, verifying_key
from couponsvc.support.sealing import CannotOpen, MasterKey
from couponsvc.support.signing import VerifyingKey

log = structlog.get_logger("auth")


@dataclass(frozen=True, slots=True)
class Credential:
    """What one row of the table proves."""

    principal: Principal
    key: VerifyingKey | None
    """None for a bearer token."""
    expires_s: float
    """Unix time; infinite where it never ends."""


class CredentialTable:
    """One snapshot of all live credentials; never changed once made."""

    __slots__ = ("by_token_hash", "credentials", "keys", "limited", "rows")

    def __init__(self, rows: Sequence[asyncpg.Record], master_key: MasterKey, before: Self | None) -> None:
        self.rows: Final[dict[str, asyncpg.Record]] = {}
        self.credentials: Final[dict[str, Credential]] = {}
        self.keys: Final[dict[str, VerifyingKey]] = {}
        self.by_token_hash: Final[dict[bytes, Credential]] = {}
        self.limited: Final[dict[bytes, Principal]] = {}
        """Of the partners whose rate is limited, by the `keyid` that a signature names."""
        for row in rows:
            key_id: str = row["key_id"]
            self.rows[key_id] = row
            if before is not None and before.rows.get(key_id) == row:
                credential = before.credentials.get(key_id)  # nothing opened, or told, anew
            else:
                credential = _read_or_tell(row, master_key)
            if credential is None:
                continue
            self.credentials[key_id] = credential
            if credential.key is not None:
                self.keys[key_id] = credential.key
                if credential.principal.rate is not None:
                    self.limited[key_id.encode()] = credential.principal
            if row["token_hash"] is not None:
                self.by_token_hash[row["token_hash"]] = credential


def _read_or_tell(row: asyncpg.Record, master_key: MasterKey) -> Credential | None:
    """A credential that cannot be used must not keep the others out."""
    try:
        return _read(row, master_key)
    except (CannotOpen, ValueError) as error:
        log.error("credential cannot be used", key_id=row["key_id"], reason=str(error))  # noqa: TRY400 - one line says all
        return None


def _read(row: asyncpg.Record, master_key: MasterKey) -> Credential:
    principal = Principal(
        row["key_id"],
        row["holder"],
        row["partner_no"],
        row["partner_id"],
        frozenset(row["scopes"]),
        rate_of(row),
    )
    expires_at = row["expires_at"]
    expires_s = inf if expires_at is None else expires_at.timestamp()
    return Credential(principal, verifying_key(row, master_key), expires_s)
