"""Who may call: partners, and the credentials of partners, operators and auditors.

A secret or token is returned once, by the call that makes it. Kept are: a sealed HMAC
secret (it must be usable again), a public key, or a keyed hash of a token.
"""

import base64
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from couponsvc.programs.credential import (
    SCOPES_OF,
    CredentialRequest,
    Holder,
    InvalidCredential,
    Kind,
    NewCredential,
    checked_scopes,
)
from couponsvc.programs.public_key import read_public_key
from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import Ed25519Key, HmacKey, VerifyingKey
from couponsvc.support.sql import Queries

__all__ = [
    "SCOPES_OF",
    "Conflict",
    "CredentialRequest",
    "Holder",
    "InvalidCredential",
    "Kind",
    "NewCredential",
    "Unknown",
]

SQL: Final = Queries("couponsvc.programs", "admission")

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
SECRET_BYTES: Final = 32
TOKEN_PREFIX: Final = "couponsvc_"  # noqa: S105 - how every token starts
"""Lets scanners find a token that leaked into a repository or a log."""
SECRET_PURPOSE: Final = "credential-secret"  # noqa: S105 - a name
"""Purpose under which an HMAC secret is sealed; its owner is the key_id."""
GRACE: Final = timedelta(hours=24)
"""How long the old key of a rotation lives on, if nothing else is said."""
DEVELOPMENT_LABEL: Final = "development"
DEVELOPMENT_PARTNER: Final = "bank-a"
_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")


class Unknown(Exception):
    """No such partner or key; the message names it. Nothing was changed."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is no {kind} named {name}.")
        self.kind: Final = kind


class Conflict(Exception):
    """It cannot be done to what stands; the message says what to do instead. Nothing was changed."""


async def create_partner(pool: Pool, actor: str, partner_id: str, name: str) -> int:
    """Admit a partner.

    Returns:
        Its partner_no.

    Raises:
        InvalidCredential: the identifier is no slug.
        Conflict: there is one already.
    """
    if not _SLUG.fullmatch(partner_id):
        raise InvalidCredential(
            f"{partner_id!r} is no identifier: 2 to 63 of a-z, 0-9 and dash, not starting with a dash"
        )
    async with pool.acquire() as connection, connection.transaction():
        partner_no: int | None = await connection.fetchval(SQL["insert_partner"], partner_id, name)
        if partner_no is None:
            raise Conflict(f"There is a partner named {partner_id} already.")
        await _record(connection, actor, "partner.create", partner_id, {"name": name})
        return partner_no


async def list_partners(pool: Pool) -> Sequence[Mapping[str, Any]]:
    """`partner_id`, `name`, `created_at`, `live_key_count` of every partner."""
    return [dict(row) for row in await pool.fetch(SQL["list_partners"])]


async def create_key(
    pool: Pool, master_key: MasterKey, actor: str, request: CredentialRequest
) -> NewCredential:
    """Make a credential; its secret or token is in the answer and nowhere else.

    Raises:
        InvalidCredential: kind, scopes and holder do not fit together, or the public key is none.
        Unknown: no such partner.
    """
    async with pool.acquire() as connection, connection.transaction():
        return await _create(connection, master_key, actor, request)


async def list_keys(pool: Pool, partner_id: str | None = None) -> Sequence[Mapping[str, Any]]:
    """Every credential, or a partner's, without anything secret.

    Raises:
        Unknown: no such partner.
    """
    if partner_id is not None and await pool.fetchval(SQL["find_partner"], partner_id) is None:
        raise Unknown("partner", partner_id)
    return [dict(row) for row in await pool.fetch(SQL["list_credentials"], partner_id)]


async def rotate_key(
    pool: Pool,
    master_key: MasterKey,
    actor: str,
    key_id: str,
    *,
    grace: timedelta = GRACE,
    public_key: str | None = None,
) -> tuple[NewCredential, datetime]:
    """Make a key like `key_id` beside it, and let the old one end after `grace`.

    Args:
        pool: Postgres.
        master_key: Seals the new secret.
        actor: Who does it, for the record.
        key_id: The key to replace.
        grace: How long both live.
        public_key: The new public key, where the old one is ed25519.

    Returns:
        The new credential, and when the old one ends.

    Raises:
        Unknown: no such key.
        Conflict: it is revoked or expired; create a new one instead.
        InvalidCredential: a public key is missing or not one.
    """
    if grace < timedelta(0):
        raise InvalidCredential("The grace period is negative.")
    async with pool.acquire() as connection, connection.transaction():
        old = await connection.fetchrow(SQL["lock_credential"], key_id)
        if old is None:
            raise Unknown("key", key_id)
        if not old["live"]:
            raise Conflict(f"The key {key_id} is revoked or expired; create a new one.")
        request = CredentialRequest(
            holder=old["holder"],
            kind=old["kind"],
            partner_id=old["partner_id"],
            scopes=frozenset(old["scopes"]),
            public_key=public_key,
            label=old["label"],
        )
        made = await _create(connection, master_key, actor, request)
        ends_at: datetime = await connection.fetchval(SQL["expire_credential"], key_id, grace)
        detail = {"successor": made.key_id, "expires_at": ends_at.isoformat()}
        await _record(connection, actor, "key.rotate", key_id, detail)
        return made, ends_at


async def revoke_key(pool: Pool, actor: str, key_id: str) -> bool:
    """End a credential; every API process refuses it within five seconds.

    Returns:
        False where it was revoked before.

    Raises:
        Unknown: no such key.
    """
    async with pool.acquire() as connection, connection.transaction():
        found = await connection.fetchrow(SQL["lock_credential"], key_id)
        if found is None:
            raise Unknown("key", key_id)
        if found["revoked_at"] is not None:
            return False
        await connection.execute(SQL["revoke_credential"], key_id)
        await _record(connection, actor, "key.revoke", key_id, {})
        return True


async def create_development_credentials(
    pool: Pool, master_key: MasterKey
) -> dict[str, dict[str, str]] | None:
    """Make the credentials of `<data-dir>/credentials.json`, all or none.

    Returns:
        Contract: `{"operator":{"token"},"auditor":{"token"},"partner":{"partner_id","key_id",
        "secret","token"}}`; None where they were made before, because they are shown once.
    """
    actor = "cli"
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(SQL["lock_development_credentials"])
        if await connection.fetchval(SQL["find_labelled_credential"], DEVELOPMENT_LABEL):
            return None
        name = "Bank A (development)"
        if await connection.fetchval(SQL["insert_partner"], DEVELOPMENT_PARTNER, name) is not None:
            await _record(connection, actor, "partner.create", DEVELOPMENT_PARTNER, {"name": name})

        async def make(holder: Holder, kind: Kind) -> NewCredential:
            partner_id = DEVELOPMENT_PARTNER if holder == "partner" else None
            request = CredentialRequest(holder, kind, partner_id, label=DEVELOPMENT_LABEL)
            return await _create(connection, master_key, actor, request)

        operator = await make("operator", "bearer")
        auditor = await make("auditor", "bearer")
        signing = await make("partner", "hmac-sha256")
        bearer = await make("partner", "bearer")
    return {
        "operator": {"token": operator.token or ""},
        "auditor": {"token": auditor.token or ""},
        "partner": {
            "partner_id": DEVELOPMENT_PARTNER,
            "key_id": signing.key_id,
            "secret": signing.secret or "",
            "token": bearer.token or "",
        },
    }


async def read_live_credentials(pool: Pool) -> Sequence[asyncpg.Record]:
    """Rows of everything that may authenticate (columns: see the query).

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    return await pool.fetch(SQL["read_live_credentials"])


def verifying_key(row: asyncpg.Record, master_key: MasterKey) -> VerifyingKey | None:
    """The key of a credential's row; None for a bearer token.

    Raises:
        CannotOpen: the secret was sealed with another master key.
    """
    if row["kind"] == "hmac-sha256":
        secret = master_key.open(row["sealed_secret"], SECRET_PURPOSE, row["key_id"])
        return HmacKey(row["key_id"], secret)
    if row["kind"] == "ed25519":
        return Ed25519Key(row["key_id"], row["public_key"])
    return None


async def _create(
    connection: Connection, master_key: MasterKey, actor: str, request: CredentialRequest
) -> NewCredential:
    scopes = checked_scopes(request)
    partner_no: int | None = None
    if request.partner_id is not None:
        partner_no = await connection.fetchval(SQL["find_partner"], request.partner_id)
        if partner_no is None:
            raise Unknown("partner", request.partner_id)
    key_id = f"{request.partner_id or request.holder}-{secrets.token_hex(4)}"
    sealed = public = token_hash = secret = token = None
    match request.kind:
        case "hmac-sha256":
            key = secrets.token_bytes(SECRET_BYTES)
            sealed = master_key.seal(key, SECRET_PURPOSE, key_id)
            secret = base64.b64encode(key).decode("ascii")
        case "ed25519":
            public = read_public_key(request.public_key or "")
        case "bearer":
            token = TOKEN_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
            token_hash = master_key.token_hash(token)
    await connection.execute(
        SQL["insert_credential"],
        key_id,
        request.kind,
        request.holder,
        partner_no,
        list(scopes),
        sealed,
        public,
        token_hash,
        request.label,
        request.expires_at,
    )
    detail = {
        "kind": request.kind,
        "holder": request.holder,
        "partner_id": request.partner_id,
        "scopes": list(scopes),
    }
    await _record(connection, actor, "key.create", key_id, detail)
    return NewCredential(
        key_id,
        request.kind,
        request.holder,
        request.partner_id,
        scopes,
        request.expires_at,
        secret,
        token,
    )


async def _record(
    connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Write who changed what, in the change's own transaction. `detail` never has secrets."""
    await connection.execute(
        SQL["record_operation"], actor, action, subject, msgspec.json.encode(detail).decode()
    )
