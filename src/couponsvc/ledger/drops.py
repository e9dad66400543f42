"""Reads drop definitions from Postgres, the only place where they are true."""

from collections.abc import Collection

import asyncpg

from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms

_queries = Queries("couponsvc.ledger", "drops")


async def load_drops(
    pool: "asyncpg.Pool[asyncpg.Record]", drop_ids: Collection[str] | None = None
) -> list[Drop]:
    """Definitions of the named drops, or of all drops, in order of `drop_no`.

    Names that do not exist are left out.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    rows = await pool.fetch(_queries["load_drops"], None if drop_ids is None else list(drop_ids))
    return [drop_of(row) for row in rows]


def drop_of(row: asyncpg.Record) -> Drop:
    """Read one row of `load_drops`."""
    return Drop(
        drop_no=row["drop_no"],
        drop_id=row["drop_id"],
        program_id=row["program_id"],
        template_id=row["template_id"],
        region=row["region"],
        shard=row["shard"],
        epoch=row["epoch"],
        version=row["version"],
        status=DropStatus(row["status"]),
        quantity=row["quantity"],
        per_person_limit=row["per_person_limit"],
        opens_ms=row["opens_ms"],
        closes_ms=row["closes_ms"],
        terms=VoucherTerms(row["face_value_fen"], row["min_spend_fen"], row["valid_for_ms"]),
        partners=frozenset(row["partners"]),
    )
