"""Drops and vouchers put in place by SQL, and grabs decided by the real gate script."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import asyncpg
from redis.asyncio import Redis

from couponsvc.gate.grabbing import SCRIPT, grab_command
from couponsvc.ledger import codes
from couponsvc.reconcile.snapshot import read_gate, read_ledger
from couponsvc.support.sealing import MasterKey
from couponsvc.values import keys, wire
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms
from couponsvc.values.grab import Grab
from tests.conftest import MASTER_KEY

OPENS_MS = 1_700_000_000_000
CLOSES_MS = 4_000_000_000_000
HOUR_MS = 3_600_000

_MAKE_DROP = """
WITH partner AS (
  INSERT INTO partners (partner_id, name) VALUES ('bank-a', 'Bank A')
  ON CONFLICT (partner_id) DO UPDATE SET name = excluded.name RETURNING partner_no
), program AS (
  INSERT INTO programs (program_id, name, region, sealed_code_key)
  VALUES ('qingdao-2022', 'Qingdao', '370200', $6)
  ON CONFLICT (program_id) DO UPDATE SET name = excluded.name RETURNING program_no
), template AS (
  INSERT INTO templates (program_no, template_id, name, face_value_fen, min_spend_fen, valid_for_ms)
  SELECT program_no, 'dining-20', 'Dining', 2000, 6000, 172800000 FROM program
  ON CONFLICT (program_no, template_id) DO UPDATE SET name = excluded.name RETURNING program_no
), made AS (
  INSERT INTO drops (drop_id, program_no, template_id, quantity, per_person_limit, opens_at, closes_at,
    face_value_fen, min_spend_fen, valid_for_ms)
  SELECT $1, program_no, 'dining-20', $2, $3, to_timestamp($4::bigint / 1000.0),
    to_timestamp($5::bigint / 1000.0), 2000, 6000, 172800000 FROM template
  RETURNING drop_no
), granted AS (
  INSERT INTO drop_partners SELECT made.drop_no, partner.partner_no FROM made, partner
)
SELECT drop_no FROM made
"""

_ISSUE = """
WITH raised AS (
  UPDATE drops SET issued = issued + $2 WHERE drop_no = $1 RETURNING issued - $2 AS before
), rows AS (
  INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no, code)
  SELECT $1, before + n, 1, 1, to_timestamp(1700000000.123 + before + n), 'p-' || before + n,
    $1 || '-' || before + n, 'CODE' || before + n
  FROM raised, generate_series(1, $2::int) n
)
INSERT INTO outbox (type, drop_no, first_seq, last_seq)
SELECT 'voucher.issued', $1, before + 1, before + $2 FROM raised
"""


async def make_drop(
    pool: "asyncpg.Pool[asyncpg.Record]", drop_id: str = "drop-a", *, quantity: int = 10, limit: int = 1
) -> Drop:
    """A drop that is open, in Postgres only."""
    sealed = MasterKey.from_base64(MASTER_KEY).seal(bytes(codes.KEY_BYTES), codes.KEY_PURPOSE)
    drop_no = await pool.fetchval(_MAKE_DROP, drop_id, quantity, limit, OPENS_MS, CLOSES_MS, sealed)
    return await drop_now(pool, drop_no)


async def drop_now(pool: "asyncpg.Pool[asyncpg.Record]", drop_no: int) -> Drop:
    return (await read_ledger(pool, 0, [drop_no]))[0].drop


async def issue(pool: "asyncpg.Pool[asyncpg.Record]", drop: Drop, count: int) -> None:
    """Commit vouchers as the ledger does, behind the back of Redis."""
    await pool.execute(_ISSUE, drop.drop_no, count)


async def expected_holders(pool: "asyncpg.Pool[asyncpg.Record]", drop: Drop) -> dict[bytes, bytes]:
    """What the holders of a drop must be, written without the code under test."""
    rows = await pool.fetch("SELECT * FROM vouchers WHERE drop_no = $1", drop.drop_no)
    return {
        f"{row['ordinal']}:{row['partner_no']}:{row['person_token']}".encode(): (
            f"{row['out_request_no']} {row['seq']} {round(row['issued_at'].timestamp() * 1000)} {row['code']}"
        ).encode()
        for row in rows
    }


async def holders(redis: Redis, drop: Drop) -> dict[bytes, bytes]:
    found = await redis.hgetall(keys.holders_key(drop.shard, drop.drop_no, drop.epoch))
    return {
        field: note for field, note in found.items() if isinstance(field, bytes) and isinstance(note, bytes)
    }


async def counters(redis: Redis, drop: Drop) -> tuple[int, int, int, int]:
    """`(available, pending, issued, quantity)`."""
    state = (await read_gate(redis, [drop]))[0].state
    assert state is not None, "the drop is not loaded"
    return state.available, state.pending, state.issued, state.quantity


async def published(redis: Redis, drop: Drop) -> int:
    return (await read_gate(redis, [drop]))[0].published


async def grab(redis: Redis, drop: Drop, *persons: str) -> str:
    """Codes of the gate for one grab of each person, in order."""
    grabs = [
        wire.grab_row(1, Grab(drop.drop_no, f"1:{person}", f"{drop.drop_no}-{person}", "", ""))
        for person in persons
    ]
    key_names, arguments = grab_command(
        drop.shard, wire.encode_origin("scene", 1), [(drop.drop_no, drop.epoch)], grabs, 100_000
    )
    reply = await SCRIPT.run(redis, key_names, arguments)
    codes: bytes = reply[0]
    return codes.decode()


async def rows_of(*chunks: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    for chunk in chunks:
        yield chunk


def any_drop(**changes: object) -> Drop:
    """A drop that exists nowhere yet."""
    drop = Drop(
        drop_no=7, drop_id="drop-a", program_id="qingdao-2022", template_id="dining-20", region="", shard=0,
        epoch=1, version=1, status=DropStatus.ACTIVE, quantity=10, per_person_limit=1, opens_ms=OPENS_MS,
        closes_ms=CLOSES_MS, terms=VoucherTerms(2000, 6000, 48 * HOUR_MS), partners=frozenset({1}),
    )  # fmt: skip
    return replace(drop, **changes)  # type: ignore[arg-type]
