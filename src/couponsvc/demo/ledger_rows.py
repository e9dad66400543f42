"""What stands in Postgres, read directly: the demo trusts no answer of the API about itself."""

import asyncpg

from couponsvc.demo.records import DropRow, Rows, VoucherRow
from couponsvc.support.sql import Queries

SQL = Queries("couponsvc.demo", "rows")


async def read_rows(dsn: str, drop_ids: list[str]) -> Rows:
    """Read drops and all their vouchers in one snapshot.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            drops = await connection.fetch(SQL["drops"], drop_ids)
            vouchers = await connection.fetch(SQL["vouchers"], [drop["drop_no"] for drop in drops])
    finally:
        await connection.close()
    return Rows(tuple(DropRow(*row) for row in drops), tuple(VoucherRow(*row) for row in vouchers))
