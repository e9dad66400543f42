"""Kafka as a sink, against the brokers that librdkafka brings for tests: the real protocol, no real log.

They come in `confluent-kafka`, which nothing else here uses.
"""

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]

from couponsvc.outbox.sinks import kafka
from couponsvc.outbox.sinks.kafka import KafkaAccess, KafkaSink, record_of
from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses
from tests.brokers import event

pytestmark = pytest.mark.slow

TOPIC = "couponsvc.events"
BROKERS = """
import sys
from confluent_kafka import Producer
producer = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "x", "log_level": 0})
brokers = producer.list_topics(sys.argv[1], timeout=10).brokers.values()
print(",".join(f"{broker.host}:{broker.port}" for broker in brokers), flush=True)
sys.stdin.read()
"""


class Brokers:
    """Three brokers in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process, servers: str) -> None:
        self.process = process
        self.servers = servers

    async def records(self, count: int) -> list[Any]:
        """The first `count` records; every partition in its order."""
        consumer = AIOKafkaConsumer(
            TOPIC, bootstrap_servers=self.servers, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            return [await asyncio.wait_for(consumer.getone(), 10) for _ in range(count)]
        finally:
            await consumer.stop()


@pytest.fixture
async def brokers() -> AsyncIterator[Brokers]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BROKERS, TOPIC, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield Brokers(process, (await asyncio.wait_for(process.stdout.readline(), 15)).decode().strip())
    process.stdin.close()
    await process.wait()


async def test_brokers_have_every_event_and_each_key_in_order(brokers: Brokers) -> None:
    events = [event(n, partner_id=f"bank-{'ab'[n % 2]}") for n in range(1, 257)]
    events += [event(n, fill=250_000) for n in range(257, 270)]
    sink = KafkaSink(KafkaAccess(brokers.servers, TOPIC))
    await sink.open()
    assert await sink.publish(events) == 0
    await sink.close()
    values, partitions = defaultdict(list), defaultdict(set)
    for record in await brokers.records(len(events)):
        values[record.key].append(record.value)
        partitions[record.key].add(record.partition)
        assert dict(record.headers) == {"content-type": kafka.CONTENT_TYPE}
        assert record.timestamp == events[0].occurred_ms
    expected = defaultdict(list)
    for each in events:
        expected[record_of(each).key].append(each.body)
    assert values == expected
    assert all(len(places) == 1 for places in partitions.values())


async def test_an_event_that_is_too_large_is_a_refusal(brokers: Brokers) -> None:
    sink = KafkaSink(KafkaAccess(brokers.servers, TOPIC))
    await sink.open()
    with pytest.raises(BrokerRefuses, match="MessageSizeTooLarge"):
        await sink.publish([event(1), event(2, fill=kafka.RECORD_MAX_BYTES)])
    await sink.close()


async def test_brokers_that_die_are_away_within_a_bound_and_leave_nothing_behind(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "PUBLISH_TIMEOUT_S", 1.0)
    sink = KafkaSink(KafkaAccess(brokers.servers, TOPIC))
    await sink.open()
    await sink.publish([event(1)])
    brokers.process.kill()
    async with asyncio.timeout(1.5):
        with pytest.raises(BrokerAway):
            await sink.publish([event(n) for n in range(2, 100)])
    async with asyncio.timeout(kafka.CLOSE_TIMEOUT_S + 0.5):
        await sink.close()
