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
from couponsvc.programs.live_credentials import SECRET_PURPOSE
from couponsvc.programs.public_key import read_public_key
from couponsvc.support.sealing import MasterKey
from couponsvc.support.sql import Queries
from couponsvc.values.rate import Rate

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
GRACE: Final = timedelta(hours=24)
"""How long the old key of a rotation lives on, if nothing else is said."""
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
        await record_operation(connection, actor, "partner.create", partner_id, {"name": name})
        return partner_no


async def list_partners(pool: Pool) -> Sequence[Mapping[str, Any]]:
    """`partner_id`, `name`, `created_at`, `live_key_count` and rate of every partner."""
    return [dict(row) for row in await pool.fetch(SQL["list_partners"])]


async def limit_partner(pool: Pool, actor: str, partner_id: str, rate: Rate | None) -> None:
    """Limit a partner's grabs, all API processes together; they know within five seconds.

    Args:
        pool: Postgres.
        actor: Who does it, for the record.
        partner_id: Whom.
        rate: What it may send; None: as much as it likes.

    Raises:
        Unknown: no such partner.
    """
    values = (None, None) if rate is None else tuple(rate)
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(SQL["limit_partner"], partner_id, *values) is None:
            raise Unknown("partner", partner_id)
        detail = None if rate is None else rate._asdict()
        await record_operation(connection, actor, "partner.limit", partner_id, {"rate": detail})


async def create_key(
    pool: Pool, master_key: MasterKey, actor: str, request: CredentialRequest
) -> NewCredential:
    """Make a credential; its secret or token is in the answer and nowhere else.

    Raises:
        InvalidCredential: kind, scopes and holder do not fit together, or the public key is none.
        Unknown: no such partner.
    """
    async with pool.acquire() as connection, connection.transaction():
        return await add_credential(connection, master_key, actor, request)


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
        made = await add_credential(connection, master_key, actor, request)
        ends_at: datetime = await connection.fetchval(SQL["expire_credential"], key_id, grace)
        detail = {"successor": made.key_id, "expires_at": ends_at.isoformat()}
        await record_operation(connection, actor, "key.rotate", key_id, detail)
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
        await record_operation(connection, actor, "key.revoke", key_id, {})
        return True


async def add_credential(
    connection: Connection, master_key: MasterKey, actor: str, request: CredentialRequest
) -> NewCredential:
    """As `create_key`, within a transaction that does more.

    Raises:
        InvalidCredential, Unknown: as `create_key`.
    """
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
    await record_operation(connection, actor, "key.create", key_id, detail)
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


async def record_operation(
    connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Write who changed what, in the change's own transaction. `detail` never has secrets."""
    await connection.execute(
        SQL["record_operation"], actor, action, subject, msgspec.json.encode(detail).decode()
    )
