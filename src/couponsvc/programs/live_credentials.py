"""Every credential that may authenticate, as an API process reads them to check requests."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import asyncpg

from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import Ed25519Key, HmacKey, VerifyingKey
from couponsvc.support.sql import Queries
from couponsvc.values.rate import Rate

SECRET_PURPOSE: Final = "credential-secret"  # noqa: S105 - a name
"""Purpose under which an HMAC secret is sealed; its owner is the key_id."""
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
_SQL: Final = Queries("couponsvc.programs", "admission")


async def read_live_credentials(pool: Pool) -> Sequence[asyncpg.Record]:
    """Rows of everything that may authenticate (columns: see the query).

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    return await pool.fetch(_SQL["read_live_credentials"])


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


def rate_of(row: asyncpg.Record) -> Rate | None:
    """The rate of a credential's partner; None where it is not limited, or nobody's."""
    per_second = row["grabs_per_second"]
    return None if per_second is None else Rate(per_second, row["grabs_burst"])
