"""Reads drop definitions from Postgres, the only place where they are true."""

from collections.abc import Collection
from typing import NamedTuple

import asyncpg

from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms

_queries = Queries("couponsvc.ledger", "drops")


class DropMark(NamedTuple):
    """What moves whenever a drop's definition does."""

    epoch: int
    version: int
    region: str
    """Of its program, which has no version."""

    @classmethod
    def of(cls, drop: Drop) -> "DropMark":
        """The mark that this definition was read under."""
        return cls(drop.epoch, drop.version, drop.region)


async def load_drops(pool: "asyncpg.Pool[asyncpg.Record]", drop_ids: Collection[str]) -> list[Drop]:
    """Definitions of the named drops, in order of `drop_no`.

    Names that do not exist are left out.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    rows = await pool.fetch(_queries["load_drops"], list(drop_ids))
    return [drop_of(row) for row in rows]


async def mark_drops(pool: "asyncpg.Pool[asyncpg.Record]") -> dict[str, DropMark]:
    """What tells of each drop, by `drop_id`, whether its definition is another than before.

    One row and no definition: of thousands of drops it costs about a tenth of `load_drops`.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    row = await pool.fetchrow(_queries["mark_drops"])
    assert row is not None, "an aggregate has one row"  # noqa: S101 - narrows the type
    drop_ids, epochs, versions, regions = row
    return dict(zip(drop_ids, map(DropMark, epochs, versions, regions), strict=True))


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
