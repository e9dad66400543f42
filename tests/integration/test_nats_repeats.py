"""What a stream holds already is not stored again, long after JetStream has forgotten the ids; and no gap."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from structlog.testing import capture_logs

from couponsvc.outbox.sinks import nats as nats_sink
from couponsvc.outbox.sinks.feeding import RENEW_BEFORE
from couponsvc.outbox.sinks.nats import DEDUPLICATION_S, STREAM, NatsSink, headers_of, subject_of
from couponsvc.outbox.sinks.nats_held import LOOK_BACK_COUNT
from couponsvc.outbox.sinks.nats_stream import KEPT_MIN_BYTES, KEPT_MIN_COUNT, faults_of
from couponsvc.values.event import Event
from tests.brokers import NatsServer, event
from tests.servers import short_directory

pytestmark = pytest.mark.slow

FORGOTTEN_AFTER_S = 0.1
"""The shortest window that a server takes, in place of the two minutes of ours."""


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with short_directory() as data_dir:
        server = NatsServer(data_dir / "jetstream")
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def stream(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """A forgetful stream, which takes other messages beside ours."""
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(
        name=STREAM, subjects=["couponsvc.events.>", "other"], duplicate_window=FORGOTTEN_AFTER_S
    )
    yield stream
    await client.close()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[NatsSink]:
    sink = NatsSink(url)
    try:
        await sink.open()
        yield sink
    finally:
        await sink.close()


async def store(stream: JetStreamContext, events: Sequence[Event]) -> None:
    """Put events there as a relay does that is never told of it."""
    for each in events:
        await stream.publish(subject_of(each), each.body, headers=headers_of(each))


async def forget(stream: JetStreamContext) -> None:
    """Wait until the server takes an id for new that it has stored."""
    probe = {"Nats-Msg-Id": f"probe-{time.monotonic_ns()}"}
    await stream.publish("other", b"", headers=probe)
    async with asyncio.timeout(10):
        while (await stream.publish("other", b"", headers=probe)).duplicate:
            await asyncio.sleep(FORGOTTEN_AFTER_S)


async def numbers(server: NatsServer) -> list[int]:
    return [int(message.headers["Nats-Msg-Id"][4:]) for message in await server.messages()]


async def test_what_was_stored_without_acknowledgement_is_stored_once_however_late_it_is_repeated(
    server: NatsServer, stream: JetStreamContext
) -> None:
    events = [event(n, partner_id=f"bank-{'abc'[n % 3]}") for n in range(1, 301)]
    await store(stream, events[:290])
    await forget(stream)
    async with opened(server.url) as sink:
        assert await sink.publish(events[44:]) == 246
    assert await numbers(server) == list(range(1, 301))


async def test_a_hole_is_filled_though_later_events_are_there(
    server: NatsServer, stream: JetStreamContext
) -> None:
    events = [event(n) for n in range(1, 201)]
    await store(stream, [*events[:70], *events[71:150], *events[199:]])
    await forget(stream)
    async with opened(server.url) as sink:
        assert await sink.publish(events) == 150
    assert await numbers(server) == [*range(1, 71), *range(72, 151), 200, 71, *range(151, 200)]


async def test_messages_of_others_hide_nothing(server: NatsServer, stream: JetStreamContext) -> None:
    events = [event(n) for n in range(1, 31)]
    for at in range(0, 20, 5):
        await store(stream, events[at : at + 5])
        for _ in range(70):
            await stream.publish("other", b"not ours")
    await stream.publish("couponsvc.events.test", b"without an id")
    await forget(stream)
    async with opened(server.url) as sink:
        assert await sink.publish(events) == 20
    assert await server_count(stream, "couponsvc.events.*.>") == 30


async def test_the_same_number_with_other_bytes_is_another_event_and_stored(
    server: NatsServer, stream: JetStreamContext
) -> None:
    await store(stream, [event(1, fill=1), event(2), event(3, partner_id="bank-b")])
    await forget(stream)
    async with opened(server.url) as sink:
        assert await sink.publish([event(n) for n in range(1, 4)]) == 1
    assert await numbers(server) == [1, 2, 3, 1, 3]


async def test_a_stream_that_was_emptied_is_filled_again(
    server: NatsServer, stream: JetStreamContext
) -> None:
    events = [event(n) for n in range(1, 11)]
    await store(stream, events)
    await forget(stream)
    await stream.purge_stream(STREAM)
    await store(stream, events[8:])
    await forget(stream)
    await stream.delete_msg(STREAM, (await stream.get_last_msg(STREAM, "couponsvc.events.>")).seq or 0)
    async with opened(server.url) as sink:
        assert await sink.publish(events) == 1
    assert await numbers(server) == [9, *range(1, 9), 10]


async def test_a_repeat_over_the_same_connection_is_found_too(
    server: NatsServer, stream: JetStreamContext
) -> None:
    # Postgres was away when it was to be noted how far the broker is.
    events = [event(n) for n in range(1, 21)]
    async with opened(server.url) as sink:
        assert await sink.publish(events[:5]) == 0
        assert await sink.publish(events[5:15]) == 0
        await forget(stream)
        assert await sink.publish(events[5:]) == 10
    assert await numbers(server) == list(range(1, 21))


async def test_a_feed_that_was_set_back_on_purpose_is_stored_again(
    server: NatsServer, stream: JetStreamContext
) -> None:
    async with opened(server.url) as sink:
        await sink.publish([event(n) for n in range(1, LOOK_BACK_COUNT + 101)])
    await forget(stream)
    async with opened(server.url) as sink:
        assert await sink.publish([event(n) for n in range(1, 101)]) == 0


async def test_an_account_that_may_not_read_the_stream_publishes_all_the_same_and_is_told_of() -> None:
    with short_directory() as data_dir:
        config = data_dir / "nats.conf"
        config.write_text(
            "authorization: {users: [{user: u, password: p, permissions: {subscribe: '_INBOX.>', publish: "
            f'["couponsvc.events.>", "$JS.API.STREAM.INFO.{STREAM}", "$JS.API.STREAM.CREATE.{STREAM}"]}}}}, '
            "{user: reader, password: p}]}"
        )
        server = NatsServer(data_dir / "jetstream", "-c", str(config))
        server.start()
        try:
            with capture_logs() as logs:
                async with opened(f"nats://u:p@127.0.0.1:{server.port}") as sink:
                    assert await sink.publish([event(1), event(2)]) == 0
                    assert await sink.publish([event(3)]) == 0
            client = await nats.connect(f"nats://reader:p@127.0.0.1:{server.port}")
            assert (await client.jetstream().stream_info(STREAM)).state.messages == 3
            await client.close()
        finally:
            server.kill()
    (told,) = [line for line in logs if line["event"] == "stream_unread"]
    assert told["allow"] == f"$JS.API.STREAM.MSG.GET.{STREAM}"


def test_opening_looking_and_publishing_end_before_the_lease_does() -> None:
    turn_s = nats_sink.OPEN_TIMEOUT_S + nats_sink.LOOK_TIMEOUT_S + nats_sink.PUBLISH_TIMEOUT_S
    assert turn_s <= RENEW_BEFORE.total_seconds()


async def test_what_an_operators_stream_can_lose_is_told_once_and_names_what_to_change(
    server: NatsServer,
) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(
        name=STREAM, subjects=["couponsvc.events.>"], duplicate_window=7, max_msgs=50, storage="memory"
    )
    sink = NatsSink(server.url)
    with capture_logs() as logs:
        for _ in range(3):
            await sink.open()
            await sink.close()
        await client.jetstream().update_stream(
            name=STREAM, subjects=["couponsvc.events.>"], duplicate_window=7, storage="memory"
        )
        await sink.open()
        await sink.close()
    await client.close()
    told = [line["change"].split(":")[0] for line in logs if line["event"] == "stream_unfit"]
    assert told == [
        "storage is not file", "duplicate_window 7 s", "max_msgs 50 with discard old",
        "storage is not file", "duplicate_window 7 s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"no_ack": True}, ["no_ack"]),
        ({"storage": StorageType.MEMORY}, ["storage"]),
        ({"duplicate_window": DEDUPLICATION_S - 1}, ["duplicate_window"]),
        ({"duplicate_window": 600.0}, []),
        ({"max_msgs": KEPT_MIN_COUNT - 1}, ["max_msgs"]),
        ({"max_msgs": KEPT_MIN_COUNT}, []),
        ({"max_msgs_per_subject": 1}, ["max_msgs_per_subject"]),
        ({"max_bytes": KEPT_MIN_BYTES - 1}, ["max_bytes"]),
        ({"max_bytes": KEPT_MIN_BYTES}, []),
        ({"max_msgs": 50, "max_bytes": 50, "discard": DiscardPolicy.NEW}, []),
        ({"max_age": 60.0}, []),
    ],
)
def test_settings_of_a_stream_that_lose_events_are_told(changed: dict[str, Any], named: list[str]) -> None:
    sound = StreamConfig(
        storage=StorageType.FILE, duplicate_window=DEDUPLICATION_S, max_msgs=-1, max_bytes=-1
    )
    assert [fault.split()[0].rstrip(":") for fault in faults_of(sound.evolve(**changed))] == named


async def test_the_stream_that_is_made_has_no_faults(server: NatsServer) -> None:
    with capture_logs() as logs:
        for _ in range(2):
            async with opened(server.url):
                pass
    assert [line["event"] for line in logs] == ["stream_made"]


async def server_count(stream: JetStreamContext, subject: str) -> int:
    info = await stream.stream_info(STREAM, subjects_filter=subject)
    return sum((info.state.subjects or {}).values())
