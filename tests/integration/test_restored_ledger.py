"""Postgres restored from an older copy: numbers that receivers know already must not be used again.

docs/faults.md says which statement an operator runs before the first relay is started; it is run here.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.gate.loading import publish_new_drop
from couponsvc.ledger.drainer import Drainer
from couponsvc.outbox.leasing import RelayNumber
from couponsvc.outbox.partitions import EVENTS_PER_PARTITION_COUNT
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sinks.feeding import Feeder
from couponsvc.reconcile.check import check
from couponsvc.settings import Settings
from couponsvc.support import metrics
from couponsvc.values.drop import Drop
from tests.brokers import FailingBroker
from tests.integration.outbox_scene import documents, feed, number_all, prepare, tell
from tests.integration.scene import grab, make_drop

pytestmark = pytest.mark.slow

Pool = asyncpg.Pool
SIZE = EVENTS_PER_PARTITION_COUNT
FAULTS = Path(__file__).parents[2] / "docs" / "faults.md"
MISSED = 'couponsvc_sink_missed_events_total{sink="restored"} '


def statement() -> str:
    """What operators are told to run, from the document itself."""
    [found] = re.findall(r"`(UPDATE event_counter [^`]+)`", FAULTS.read_text("utf-8"))
    return str(found)


@pytest.fixture
async def drainer(settings: Settings) -> AsyncIterator[Drainer]:
    drainer = await Drainer.open(settings)
    yield drainer
    await drainer.close()


@pytest.fixture
async def restored(pool: "Pool[asyncpg.Record]", redis: Redis, drainer: Drainer) -> Drop:
    """A ledger as an older copy has it: two vouchers and their event."""
    await prepare(pool)
    drop = await make_drop(pool, quantity=10)
    await publish_new_drop(redis, drop)
    await grab(redis, drop, "a", "b")
    await drainer.run_once()
    await number_all(pool)
    return drop


async def newest(pool: "Pool[asyncpg.Record]") -> int:
    return int(await pool.fetchval("SELECT last_event_no FROM event_counter"))


async def go_on(pool: "Pool[asyncpg.Record]", redis: Redis, drainer: Drainer, drop: Drop) -> None:
    """A relay is started: it makes partitions first, then tells of what comes."""
    await prepare(pool)
    for person in ("c", "d"):
        await grab(redis, drop, person)
        await drainer.run_once()
        await number_all(pool)


@asynccontextmanager
async def feeding(
    pool: "Pool[asyncpg.Record]", settings: Settings, broker: FailingBroker
) -> AsyncIterator[Feeder]:
    number = RelayNumber(settings.postgres_dsn.get_secret_value(), on_events=lambda: None)
    await number.hold()
    feeder = Feeder(
        broker,
        pool=pool,
        reader=EventReader(pool),
        relay_no=lambda: number.number,
        clock=lambda: datetime.now(UTC),
    )
    yield feeder
    await feeder.close()
    await number.close()


def missed_count() -> float:
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith(MISSED)]
    return float(lines[0].removeprefix(MISSED)) if lines else 0.0


@pytest.mark.parametrize("advanced", [False, True])
async def test_who_drops_what_it_knows_gets_all_that_is_new_only_if_numbers_are_not_used_again(
    pool: "Pool[asyncpg.Record]",
    settings: Settings,
    redis: Redis,
    drainer: Drainer,
    restored: Drop,
    *,
    advanced: bool,
) -> None:
    """A broker that de-duplicates by id, and a reader whose cursor is of the two events that were lost."""
    broker, told_no, missed = FailingBroker("restored"), await newest(pool), missed_count()
    async with feeding(pool, settings, broker) as feeder:
        await feeder.run_once()
        broker.stored += [broker.stored[-1]._replace(event_no=told_no + n) for n in (1, 2)]
        if advanced:
            await pool.execute(statement())
        await go_on(pool, redis, drainer, restored)
        counts = await feeder.run_once()
    assert (counts.events, counts.known) == ((2, 0) if advanced else (2, 2))
    assert len(await EventReader(pool).page(1, told_no + 2, 500)) == (2 if advanced else 0)
    false_alarm = SIZE - told_no if advanced else 0
    assert missed_count() == missed + false_alarm, "the document says so"


async def test_every_proof_holds_and_the_feed_is_whole_after_numbers_were_passed_over(
    pool: "Pool[asyncpg.Record]", redis: Redis, drainer: Drainer, restored: Drop
) -> None:
    told_no = await newest(pool)
    await pool.execute(statement())
    await go_on(pool, redis, drainer, restored)
    [line] = await check(pool, redis)
    assert (line.issued, line.drift, line.findings) == (4, 0, [])
    events = await feed(pool, 1)
    assert [event.event_no for event in events] == [*range(1, told_no + 1), SIZE + 1, SIZE + 2]
    assert [int(document["sequence"]) for document in documents(events)] == [*range(1, told_no + 3)]
    assert await EventReader(pool).kept() == (1, SIZE + 2)


async def test_passing_over_a_whole_partition_leaves_none_unmade(
    pool: "Pool[asyncpg.Record]", restored: Drop
) -> None:
    """Three times, where more than a million may be lost: a relay makes what it needs before it begins."""
    told_no = await newest(pool)
    for _ in range(3):
        await pool.execute(statement())
    await prepare(pool)
    await tell(pool, restored, "drop.paused")
    await number_all(pool)
    assert [event.event_no for event in await feed(pool, 1)] == [*range(1, told_no + 1), 3 * SIZE + 1]
