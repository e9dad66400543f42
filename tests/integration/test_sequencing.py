"""The sequencer: outbox rows become numbered events, one per partner that may know."""

import json
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from couponsvc.outbox.partitions import tend_partitions
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sequencing import SequenceCounts, Sequencer
from tests.integration.scene import issue, make_drop

Pool = asyncpg.Pool
NOW = datetime(2026, 10, 1, 2, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
async def _partitions(pool: "Pool[asyncpg.Record]") -> None:
    await tend_partitions(pool, NOW, events_kept_days=0, attempts_kept_days=30)


async def documents(pool: "Pool[asyncpg.Record]", partner_no: int = 1) -> list[dict[str, Any]]:
    return [json.loads(event.body) for event in await EventReader(pool).page(partner_no, 0, 500)]


async def test_a_committed_batch_becomes_an_event_of_its_vouchers(pool: "Pool[asyncpg.Record]") -> None:
    drop = await make_drop(pool)
    await issue(pool, drop, 3)
    assert await Sequencer(pool).run_once(NOW) == SequenceCounts(outbox_rows=1, events=2, deliveries=0)
    opened, issued = await documents(pool)
    assert opened["type"] == "couponsvc.drop.opened.v1"
    assert issued["type"] == "couponsvc.voucher.issued.v1"
    assert [voucher["seq"] for voucher in issued["data"]["vouchers"]] == [1, 2, 3]
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0
