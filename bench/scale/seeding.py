"""Fills an empty ledger with millions of vouchers of past drops, in a way that `check` agrees with.

The rows go straight into Postgres with COPY, in one transaction, with the unique indexes taken
away before and built again after, which is several times faster than keeping them. Everything
else is as drainers would have left it: numbers without gaps, one outbox row per commit, codes of
the program's own key, `drops.issued`. Redis is left alone: the reconciler finds the drops and
loads their holders by itself, as it does after Redis was lost.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from time import perf_counter
from typing import Final, NamedTuple

import asyncpg

from bench.scale.past import COLUMNS, COMMIT_COUNT, COMMIT_EVERY_MS, PastDrop, voucher_rows
from couponsvc.ledger.codes import KEY_PURPOSE, CodeBook
from couponsvc.programs.definitions import define_program, define_template
from couponsvc.support.postgres import open_pool
from couponsvc.support.sealing import MasterKey
from couponsvc.values.drop import VoucherTerms

TEMPLATE_ID: Final = "dining-20"
TERMS: Final = VoucherTerms(2_000, 6_000, 48 * 3_600_000)
ACTOR: Final = "bench"
OTHER_PARTNERS: Final = ("wallet-b", "city-card-c")
"""Beside the partner that goes on grabbing."""
SEED_TIMEOUT_S: Final = 600.0
COPY_BYTES: Final = 1 << 20
"""Text handed to the driver at a time."""
BUILD_MEMORY: Final = "1GB"
"""For sorting an index of five million keys without files."""

_INDEXES = """
SELECT conname AS name, pg_get_constraintdef(oid) AS definition
FROM pg_constraint
WHERE conrelid = 'vouchers'::regclass AND contype IN ('p', 'u')
ORDER BY conname
"""
_DROPS = """
INSERT INTO drops (drop_id, program_no, template_id, quantity, per_person_limit, opens_at, closes_at,
                   face_value_fen, min_spend_fen, valid_for_ms, issued, sold_out_at)
SELECT g.drop_id, p.program_no, t.template_id, g.quantity, 1, g.opens_at, g.closes_at,
       t.face_value_fen, t.min_spend_fen, t.valid_for_ms, g.quantity, g.sold_out_at
FROM unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
  AS g (program_id, drop_id, quantity, opens_at, closes_at, sold_out_at)
JOIN programs p USING (program_id)
JOIN templates t USING (program_no)
RETURNING drop_no, drop_id
"""
_ADMIT = """
INSERT INTO drop_partners (drop_no, partner_no)
SELECT drop_no, partner_no
FROM unnest($1::int[]) AS d (drop_no)
CROSS JOIN unnest($2::int[]) AS p (partner_no)
"""
_OUTBOX = """
INSERT INTO outbox (type, drop_no, first_seq, last_seq, occurred_at)
SELECT 'voucher.issued', d.drop_no, first_seq, least(first_seq + $2 - 1, d.issued),
       d.opens_at + ((first_seq - 1) / $2) * $3 * interval '1 millisecond'
FROM drops d CROSS JOIN generate_series(1, d.issued, $2) AS first_seq
WHERE d.drop_no = ANY ($1::int[])
"""
_SOLD_OUT = """
INSERT INTO outbox (type, drop_no, data, occurred_at)
SELECT 'drop.sold_out', drop_no, jsonb_build_object('quantity', quantity), sold_out_at
FROM drops WHERE drop_no = ANY ($1::int[])
"""

Connection = asyncpg.Connection


class LedgerNotEmpty(Exception):
    """There are vouchers already; only an empty ledger is seeded."""


class Seeded(NamedTuple):
    """What was written, and how long it took."""

    vouchers: int
    drops: int
    copy_s: float
    index_s: float
    vacuum_s: float

    @property
    def total_s(self) -> float:
        """From the first statement to the end of VACUUM."""
        return self.copy_s + self.index_s + self.vacuum_s


async def seed(dsn: str, master_key: MasterKey, past: Sequence[PastDrop], partner_id: str) -> Seeded:
    """Write the drops of `past` with all their vouchers, then VACUUM and ANALYZE.

    Args:
        dsn: Of a migrated database whose ledger is empty.
        master_key: Of the installation, which seals the programs' code keys.
        past: What to write, at least one drop.
        partner_id: A partner that is admitted already; it holds a third of the vouchers.

    Raises:
        LedgerNotEmpty: there are vouchers already.
        OSError, asyncpg.PostgresError: the database cannot be written; nothing was.
    """
    await _define_programs(dsn, master_key, dict.fromkeys(drop.program_id for drop in past))
    connection = await asyncpg.connect(dsn, command_timeout=SEED_TIMEOUT_S)
    try:
        began = perf_counter()
        async with connection.transaction():
            indexes = await _write(connection, master_key, past, partner_id)
            copied = perf_counter()
            for name, definition in indexes:
                await connection.execute(f'ALTER TABLE vouchers ADD CONSTRAINT "{name}" {definition}')
        indexed = perf_counter()
        await connection.execute("VACUUM (ANALYZE) vouchers, outbox, drops, drop_partners")
        vacuumed = perf_counter()
    finally:
        await connection.close()
    vouchers = sum(drop.quantity for drop in past)
    return Seeded(vouchers, len(past), copied - began, indexed - copied, vacuumed - indexed)


async def _define_programs(dsn: str, master_key: MasterKey, program_ids: Iterable[str]) -> None:
    pool = await open_pool(dsn, max_size=1)
    try:
        for program_id in program_ids:
            await define_program(pool, master_key, ACTOR, program_id=program_id, name=program_id, region="")
            await define_template(
                pool, ACTOR, program_id=program_id, template_id=TEMPLATE_ID, name="60-20", terms=TERMS
            )
    finally:
        await pool.close()


async def _write(
    connection: "Connection[asyncpg.Record]",
    master_key: MasterKey,
    past: Sequence[PastDrop],
    partner_id: str,
) -> list[tuple[str, str]]:
    """Everything but the indexes of `vouchers`, which are returned as `(name, definition)`."""
    await connection.execute(f"SET LOCAL maintenance_work_mem = '{BUILD_MEMORY}'")
    await connection.execute("LOCK TABLE vouchers IN ACCESS EXCLUSIVE MODE")
    if await connection.fetchval("SELECT EXISTS (SELECT FROM vouchers)"):
        raise LedgerNotEmpty("the ledger has vouchers already; seed a fresh one")
    partner_nos = await _admit_partners(connection, partner_id)
    drop_nos = await _insert_drops(connection, past, partner_nos)
    books = await _read_books(connection, master_key)
    indexes = [(row["name"], row["definition"]) for row in await connection.fetch(_INDEXES)]
    for name, _ in indexes:
        await connection.execute(f'ALTER TABLE vouchers DROP CONSTRAINT "{name}"')
    await connection.execute("TRUNCATE vouchers")  # in this transaction, so that FREEZE is allowed

    async def text() -> AsyncIterator[bytes]:
        waiting = bytearray()
        for drop in past:
            for _, rows in voucher_rows(drop, drop_nos[drop.drop_id], partner_nos, books[drop.program_id]):
                waiting += rows
                if len(waiting) >= COPY_BYTES:
                    yield bytes(waiting)
                    waiting.clear()
        yield bytes(waiting)

    await connection.copy_to_table("vouchers", source=text(), columns=COLUMNS, freeze=True)
    numbers = list(drop_nos.values())
    await connection.execute(_OUTBOX, numbers, COMMIT_COUNT, COMMIT_EVERY_MS)
    await connection.execute(_SOLD_OUT, numbers)
    return indexes


async def _admit_partners(connection: "Connection[asyncpg.Record]", partner_id: str) -> list[int]:
    await connection.executemany(
        "INSERT INTO partners (partner_id, name) VALUES ($1, $1) ON CONFLICT DO NOTHING",
        [(name,) for name in OTHER_PARTNERS],
    )
    rows = await connection.fetch(
        "SELECT partner_no FROM partners WHERE partner_id = ANY ($1) ORDER BY partner_no",
        [partner_id, *OTHER_PARTNERS],
    )
    return [row["partner_no"] for row in rows]


async def _insert_drops(
    connection: "Connection[asyncpg.Record]", past: Sequence[PastDrop], partner_nos: Sequence[int]
) -> dict[str, int]:
    columns = zip(
        *[(d.program_id, d.drop_id, d.quantity, d.opens_at, d.closes_at, d.sold_out_at) for d in past],
        strict=True,
    )
    rows = await connection.fetch(_DROPS, *[list(column) for column in columns])
    drop_nos = {row["drop_id"]: row["drop_no"] for row in rows}
    await connection.execute(_ADMIT, list(drop_nos.values()), list(partner_nos))
    return drop_nos


async def _read_books(connection: "Connection[asyncpg.Record]", master_key: MasterKey) -> dict[str, CodeBook]:
    rows = await connection.fetch("SELECT program_id, sealed_code_key FROM programs")
    return {row["program_id"]: CodeBook(master_key.open(row["sealed_code_key"], KEY_PURPOSE)) for row in rows}
