"""The bench's past: millions of vouchers written straight into Postgres must be as good as issued ones."""

from datetime import UTC, datetime

import asyncpg
import pytest
from bench.scale.past import COMMIT_COUNT, plan_past
from bench.scale.seeding import LedgerNotEmpty, seed
from redis.asyncio import Redis

from couponsvc.ledger.codes import KEY_PURPOSE, CodeBook
from couponsvc.programs.admission import create_partner
from couponsvc.reconcile.check import DRAINED, check, check_stream
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.reconcile.snapshot import Pool
from couponsvc.settings import Settings
from couponsvc.support.sealing import MasterKey
from tests.conftest import MASTER_KEY

COUNT = 3 * COMMIT_COUNT + 7
OWN_COUNT = COMMIT_COUNT + 1
PAST = plan_past(COUNT, "qingdao-2022", OWN_COUNT, datetime(2026, 10, 7, 2, tzinfo=UTC))
INDEXES = "SELECT indexdef FROM pg_indexes WHERE tablename = 'vouchers' ORDER BY indexname"


@pytest.fixture
async def seeded(pool: "Pool[asyncpg.Record]", database: str) -> list[str]:
    """A database with a past; the indexes that `vouchers` had before."""
    indexes = [row["indexdef"] for row in await pool.fetch(INDEXES)]
    await create_partner(pool, "test", "bank-a", "Bank A")
    await seed(database, MasterKey.from_base64(MASTER_KEY), PAST, "bank-a")
    return indexes


@pytest.mark.usefixtures("seeded")
async def test_check_finds_zero_drift_in_a_seeded_past(
    settings: Settings, pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    reconciler = await Reconciler.open(settings)
    try:
        await reconciler.run_once()
    finally:
        await reconciler.close()
    lines = await check(pool, redis)
    assert [(line.issued, line.available, line.drift) for line in lines] == [
        (drop.quantity, 0, 0) for drop in PAST
    ], [line.findings for line in lines]
    assert sum(line.issued for line in lines) == COUNT
    assert await check_stream(redis, 0) == DRAINED


async def test_seeding_leaves_every_index_as_it_was(seeded: list[str], pool: "Pool[asyncpg.Record]") -> None:
    assert [row["indexdef"] for row in await pool.fetch(INDEXES)] == seeded


@pytest.mark.usefixtures("seeded")
async def test_codes_of_the_past_name_their_vouchers(pool: "Pool[asyncpg.Record]") -> None:
    rows = await pool.fetch(
        "SELECT v.code, v.drop_no, v.seq, p.sealed_code_key FROM vouchers v"
        " JOIN drops USING (drop_no) JOIN programs p USING (program_no) WHERE v.seq % 50 = 1"
    )
    master_key = MasterKey.from_base64(MASTER_KEY)
    assert len(rows) > len(PAST)
    for row in rows:
        book = CodeBook(master_key.open(row["sealed_code_key"], KEY_PURPOSE))
        assert book.read(row["code"]) == (row["drop_no"], row["seq"])


@pytest.mark.usefixtures("seeded")
async def test_the_past_of_the_program_itself_has_as_many_as_asked(
    pool: "Pool[asyncpg.Record]",
) -> None:
    counts = await pool.fetch(
        "SELECT program_id, sum(issued)::int AS issued FROM drops JOIN programs USING (program_no)"
        " GROUP BY program_id"
    )
    issued = {row["program_id"]: row["issued"] for row in counts}
    assert issued["qingdao-2022"] == OWN_COUNT
    assert sum(issued.values()) == COUNT


@pytest.mark.usefixtures("seeded")
async def test_a_ledger_with_vouchers_is_not_seeded_again(
    database: str, pool: "Pool[asyncpg.Record]"
) -> None:
    more = plan_past(10, "qingdao-2022", 10, datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(LedgerNotEmpty):
        await seed(database, MasterKey.from_base64(MASTER_KEY), more, "bank-a")
    assert await pool.fetchval("SELECT count(*) FROM vouchers") == COUNT
