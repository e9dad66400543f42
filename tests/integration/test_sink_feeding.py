"""Feeding a broker: everything in order, at least once, by one relay at a time."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from pydantic import SecretStr

from couponsvc import limits
from couponsvc.outbox.leasing import RelayNumber
from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sinks import configured_sinks, run_sinks
from couponsvc.outbox.sinks.feeding import STOP_S, TURN_COUNT, FeedCounts, Feeder
from couponsvc.outbox.sinks.nats import NatsSink
from couponsvc.outbox.sinks.sink import BrokerAway, ExtraMissing, Sink
from couponsvc.settings import Settings
from couponsvc.support import metrics
from tests.brokers import FailingBroker, NatsServer, add_events
from tests.servers import short_directory

pytestmark = pytest.mark.slow

Pool = asyncpg.Pool


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def numbered(dsn: str) -> AsyncIterator[RelayNumber]:
    number = RelayNumber(dsn, on_events=lambda: None)
    await number.hold()
    try:
        yield number
    finally:
        await number.close()


@pytest.fixture
async def number(database: str) -> AsyncIterator[RelayNumber]:
    async with numbered(database) as number:
        yield number


def feeder(
    pool: "Pool[asyncpg.Record]",
    number: RelayNumber,
    sink: Sink,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    *,
    from_now: bool = False,
) -> Feeder:
    return Feeder(
        sink,
        pool=pool,
        reader=EventReader(pool),
        relay_no=lambda: number.number,
        clock=clock,
        from_now=from_now,
    )


@asynccontextmanager
async def running(*feeders: Feeder, patience_s: float = 10.0) -> AsyncIterator[None]:
    """Feeders at work; told to stop at the end, and given so long for it."""
    stop = asyncio.Event()
    at_work = asyncio.gather(*(feeding.run(stop) for feeding in feeders))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(patience_s):
            await at_work


def stored(broker: FailingBroker) -> list[int]:
    return [event.event_no for event in broker.stored]


async def fed_to(pool: "Pool[asyncpg.Record]", sink: str = "failing") -> int:
    return int(await pool.fetchval("SELECT last_event_no FROM sinks WHERE sink = $1", sink))


async def test_a_broker_gets_every_event_in_order_from_the_first(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, TURN_COUNT + 10)
    broker = FailingBroker()
    feeding = feeder(pool, number, broker)
    assert await feeding.run_once() == FeedCounts(ours=True, events=TURN_COUNT, behind=10)
    assert await feeding.run_once() == FeedCounts(ours=True, events=10)
    assert await feeding.run_once() == FeedCounts(ours=True)
    assert stored(broker) == list(range(1, TURN_COUNT + 11))
    assert await fed_to(pool) == TURN_COUNT + 10
    await feeding.close()


async def test_a_broker_that_begins_now_is_told_of_what_comes(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, 5)
    broker = FailingBroker()
    feeding = feeder(pool, number, broker, from_now=True)
    assert await feeding.run_once() == FeedCounts(ours=True)
    await add_events(pool, 2)
    await feeding.run_once()
    assert stored(broker) == [6, 7]
    await feeding.close()


async def test_while_the_broker_is_away_nothing_is_noted_and_then_all_of_it_comes(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, 5)
    broker = FailingBroker()
    feeding = feeder(pool, number, broker)
    broker.away = True
    for _ in range(3):
        with pytest.raises(BrokerAway):
            await feeding.run_once()
        assert await fed_to(pool) == 0
        await feeding.close()
    broker.away = False
    await feeding.run_once()
    assert stored(broker) == [1, 2, 3, 4, 5]
    await feeding.close()


async def test_what_was_stored_without_acknowledgement_comes_again_with_the_same_bytes(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, 3)
    broker = FailingBroker()
    broker.fail_after_storing = True
    feeding = feeder(pool, number, broker)
    with pytest.raises(BrokerAway):
        await feeding.run_once()
    first = list(broker.stored)
    assert len(first) == 3
    assert await feeding.run_once() == FeedCounts(ours=True, events=3, known=3)
    assert broker.calls == [[1, 2, 3], [1, 2, 3]]
    assert await EventReader(pool).all_after(0, 10) == first
    await feeding.close()


async def test_of_two_relays_one_feeds(
    pool: "Pool[asyncpg.Record]", number: RelayNumber, database: str
) -> None:
    await add_events(pool, 3)
    mine, other = FailingBroker(), FailingBroker()
    async with numbered(database) as second:
        feeding, standing_by = feeder(pool, number, mine), feeder(pool, second, other)
        await feeding.run_once()
        assert await standing_by.run_once() == FeedCounts(ours=False)
        await add_events(pool, 3)
        await asyncio.gather(feeding.run_once(), standing_by.run_once())
        assert (stored(mine), stored(other)) == ([1, 2, 3, 4, 5, 6], [])
        assert other.opened == 0, "who does not feed does not connect"
        await feeding.close()
        await add_events(pool, 1)
        await standing_by.run_once()
        assert stored(other) == [7]
        await standing_by.close()


async def test_when_a_relay_dies_another_feeds_at_once(pool: "Pool[asyncpg.Record]", database: str) -> None:
    clock = Clock()
    mine, other = FailingBroker(), FailingBroker()
    await add_events(pool, 3)
    async with numbered(database) as first, numbered(database) as second:
        dying, standing_by = feeder(pool, first, mine, clock), feeder(pool, second, other, clock)
        await dying.run_once()
        assert not (await standing_by.run_once()).ours
        await first.close()  # what the kernel does for a process that was killed
        await add_events(pool, 2)
        assert await standing_by.run_once() == FeedCounts(ours=True, events=2)
        assert not (await dying.run_once()).ours, "without its number it is as good as dead"
        await standing_by.close()


async def test_a_relay_that_was_paused_past_its_lease_notes_nothing_any_more(
    pool: "Pool[asyncpg.Record]", number: RelayNumber, database: str
) -> None:
    clock = Clock()
    await add_events(pool, 3)
    mine, other = FailingBroker(), FailingBroker()
    mine.pause_s = 0.3
    async with numbered(database) as second:
        paused, standing_by = feeder(pool, number, mine, clock), feeder(pool, second, other, clock)
        late = asyncio.create_task(paused.run_once())
        while not mine.calls:
            await asyncio.sleep(0.01)
        assert not (await standing_by.run_once()).ours
        clock.now += timedelta(seconds=limits.LEASE_S + 1)
        assert (await standing_by.run_once()).ours
        await add_events(pool, 2)
        await standing_by.run_once()
        assert await late == FeedCounts(ours=False, events=3)
        assert await fed_to(pool) == 5
        assert (mine.opened, mine.closed) == (1, 1)
        await standing_by.close()


async def test_a_turn_does_not_ask_for_its_lease_again_while_most_of_it_is_left(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    clock = Clock()
    feeding = feeder(pool, number, FailingBroker(), clock)
    await feeding.run_once()
    leased_until = "SELECT leased_until FROM sinks"
    first = await pool.fetchval(leased_until)
    clock.now += timedelta(seconds=limits.LEASE_S / 3 - 1)
    await feeding.run_once()
    assert await pool.fetchval(leased_until) == first
    clock.now += timedelta(seconds=2)
    await feeding.run_once()
    assert await pool.fetchval(leased_until) == clock.now + timedelta(seconds=limits.LEASE_S)
    await feeding.close()
    assert await pool.fetchval(leased_until) is None


async def test_events_that_were_dropped_before_they_were_fed_are_counted(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, 2)
    broker = FailingBroker("dropped")
    feeding = feeder(pool, number, broker)
    await feeding.run_once()
    await add_events(pool, 10)
    await pool.execute("DELETE FROM events WHERE event_no < 8")
    await feeding.run_once()
    assert stored(broker) == [1, 2, 8, 9, 10, 11, 12]
    assert b'couponsvc_sink_missed_events_total{sink="dropped"} 5.0' in metrics.render()
    await feeding.close()


async def test_a_broker_that_fails_holds_up_no_other_and_is_fed_again_when_it_is_back(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, 10)
    failing, well = FailingBroker("away"), FailingBroker("well")
    failing.away = True
    async with running(feeder(pool, number, failing), feeder(pool, number, well)):
        await _until(lambda: len(well.stored) == 10)
        assert failing.stored == []
        assert b'couponsvc_sink_behind_events{sink="away"} 10.0' in metrics.render()
        failing.away = False
        await add_events(pool, 5)
        await _until(lambda: len(well.stored) == len(failing.stored) == 15)
        assert stored(well) == stored(failing) == list(range(1, 16))
    assert b'couponsvc_sink_behind_events{sink="away"} 0.0' in metrics.render()
    assert b'couponsvc_sink_failures_total{reason="away",sink="away"}' in metrics.render()


async def test_feeding_goes_on_when_postgres_ended_every_connection(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    broker = FailingBroker()
    async with running(feeder(pool, number, broker)):
        await add_events(pool, 3)
        await _until(lambda: len(broker.stored) == 3)
        await pool.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await pool.expire_connections()  # for the test's own part; the feeder has to cope
        await _until(lambda: number.number is None)
        await number.hold()
        await add_events(pool, 3)
        await _until(lambda: len(broker.stored) == 6)
    assert stored(broker) == [1, 2, 3, 4, 5, 6]


async def test_feeding_stops_within_its_bound_though_the_broker_hangs_and_frees_its_lease(
    pool: "Pool[asyncpg.Record]", number: RelayNumber
) -> None:
    await add_events(pool, 3)
    broker = FailingBroker()
    broker.pause_s = 60
    async with running(feeder(pool, number, broker), patience_s=STOP_S + 1):
        await _until(lambda: bool(broker.calls))
    assert await pool.fetchval("SELECT leased_by FROM sinks") is None
    assert await fed_to(pool) == 0


async def test_a_real_broker_killed_while_it_is_fed_has_everything_once_in_the_end(
    pool: "Pool[asyncpg.Record]", number: RelayNumber, settings: Settings
) -> None:
    with short_directory() as data_dir:
        server = NatsServer(data_dir / "jetstream")
        server.start()
        settings = settings.model_copy(update=_nats(server.url))
        stop = asyncio.Event()
        at_work = asyncio.create_task(
            run_sinks(settings, pool, EventReader(pool), lambda: number.number, _now, stop)
        )
        try:
            for _ in range(3):
                await add_events(pool, 700)
                await asyncio.sleep(0.05)
                server.kill()
                await add_events(pool, 100)
                server.start()
            await _until_fed(pool, "nats", 2_400)
            stop.set()
            await at_work
            messages = await server.messages()
        finally:
            stop.set()
            await at_work
            server.kill()
    assert sorted(int(message.headers["Nats-Msg-Id"][4:]) for message in messages) == list(range(1, 2_401))


async def test_without_a_broker_configured_there_is_nothing_to_do_and_nothing_imported(
    pool: "Pool[asyncpg.Record]", number: RelayNumber, settings: Settings
) -> None:
    assert configured_sinks(settings) == []
    await run_sinks(settings, pool, EventReader(pool), lambda: number.number, _now, asyncio.Event())
    code = "import sys, couponsvc.outbox.sinks; sys.exit(bool({'nats', 'aiokafka'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=subprocess.DEVNULL)
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("module", "setting", "extra"),
    [("nats", "nats_url", "nats"), ("aiokafka", "kafka_servers", "kafka")],
)
def test_a_broker_whose_client_is_not_installed_names_the_extra(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, module: str, setting: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, f"couponsvc.outbox.sinks.{extra}", raising=False)
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    values = settings.model_dump() | {setting: "nats://127.0.0.1:1" if extra == "nats" else "127.0.0.1:1"}
    with pytest.raises(ExtraMissing, match=rf"COUPONSVC_{setting.upper()} .*'couponsvc\[{extra}\]"):
        configured_sinks(Settings.model_validate(values))


def test_a_configured_broker_is_not_connected_to_before_it_is_fed(settings: Settings) -> None:
    (sink,) = configured_sinks(settings.model_copy(update=_nats("nats://127.0.0.1:1")))
    assert isinstance(sink, NatsSink)


def _nats(url: str) -> dict[str, SecretStr]:
    return {"nats_url": SecretStr(url)}


def _now() -> datetime:
    return datetime.now(UTC)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.02)


async def _until_fed(pool: "Pool[asyncpg.Record]", sink: str, event_no: int) -> None:
    async with asyncio.timeout(40):
        while await fed_to(pool, sink) < event_no:
            await asyncio.sleep(0.05)
