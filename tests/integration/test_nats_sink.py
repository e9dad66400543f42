"""JetStream as a sink, on a real nats-server."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import nats
import pytest

from couponsvc.outbox.sinks.nats import DEDUPLICATION_S, STREAM, WINDOW_COUNT, NatsSink
from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses
from tests.brokers import NatsServer, event
from tests.servers import short_directory

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with short_directory() as data_dir:
        server = NatsServer(data_dir / "jetstream")
        server.start()
        yield server
        server.kill()


@asynccontextmanager
async def opened(server: NatsServer) -> AsyncIterator[NatsSink]:
    sink = NatsSink(server.url)
    try:
        await sink.open()
        yield sink
    finally:
        await sink.close()


async def test_every_event_is_a_message_of_the_partners_subject_in_order(server: NatsServer) -> None:
    events = [event(n, partner_id=f"bank-{'ab'[n % 2]}") for n in range(1, 301)] + [event(301, drop_id=None)]
    async with opened(server) as sink:
        assert await sink.publish(events) == 0
    messages = await server.messages()
    assert [message.data for message in messages] == [each.body for each in events]
    assert [message.headers["Nats-Msg-Id"] for message in messages] == [f"evt_{n}" for n in range(1, 302)]
    assert {message.headers["content-type"] for message in messages} == {"application/cloudevents+json"}
    assert messages[0].subject == "couponsvc.events.bank-b.drop-1.drop.opened.v1"
    assert messages[-1].subject == "couponsvc.events.bank-a.-.webhook.test.v1"
    of_one = await server.messages("couponsvc.events.bank-b.>")
    assert {json.loads(message.data)["subject"] for message in of_one} == {"bank-b"}
    assert len(of_one) == 150


async def test_an_event_that_is_published_again_is_stored_once(server: NatsServer) -> None:
    events = [event(n) for n in range(1, 101)]
    async with opened(server) as sink:
        assert await sink.publish(events[:60]) == 0
        assert await sink.publish(events) == 60
    async with opened(server) as sink:
        assert await sink.publish(events) == 100
    assert len(await server.messages()) == 100


async def test_the_stream_is_made_with_file_storage_and_a_window(server: NatsServer) -> None:
    async with opened(server):
        pass
    client = await nats.connect(server.url)
    config = (await client.jetstream().stream_info(STREAM)).config
    await client.close()
    assert (config.storage, config.subjects) == ("file", ["couponsvc.events.>"])
    assert config.duplicate_window == DEDUPLICATION_S


async def test_a_stream_that_is_there_is_left_as_it_is(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(
        name=STREAM, subjects=["couponsvc.events.>", "other"], duplicate_window=7, max_msgs=50
    )
    before = (await stream.stream_info(STREAM)).config
    async with opened(server) as sink:
        await sink.publish([event(1)])
    assert (await stream.stream_info(STREAM)).config == before
    await client.close()


async def test_a_stream_with_other_subjects_is_a_refusal_that_names_it(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name=STREAM, subjects=["other"])
    await client.close()
    async with opened(server) as sink:
        with pytest.raises(BrokerRefuses, match=STREAM):
            await sink.publish([event(1)])


async def test_another_stream_that_takes_our_subjects_is_a_refusal(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="other", subjects=["couponsvc.events.>"])
    await client.jetstream().add_stream(name=STREAM, subjects=["mine"])
    async with opened(server) as sink:
        with pytest.raises(BrokerRefuses, match="expected stream does not match"):
            await sink.publish([event(1)])
    assert (await client.jetstream().stream_info("other")).state.messages == 0
    await client.close()


async def test_an_event_that_is_too_large_for_the_server_is_a_refusal(server: NatsServer) -> None:
    async with opened(server) as sink:
        with pytest.raises(BrokerRefuses, match="maximum payload"):
            await sink.publish([event(1), event(2, fill=2_000_000)])


async def test_full_events_are_pipelined_within_the_window(server: NatsServer) -> None:
    events = [event(n, fill=175_000) for n in range(1, 2 * WINDOW_COUNT + 2)]
    async with opened(server) as sink:
        assert await sink.publish(events) == 0
    assert len(await server.messages()) == len(events)


async def test_a_server_that_is_killed_in_mid_publish_has_every_event_once_afterwards(
    server: NatsServer,
) -> None:
    events = [event(n, fill=20_000) for n in range(1, 1_001)]
    async with opened(server) as sink:
        publishing = asyncio.create_task(sink.publish(events))
        while not await _some_but_not_all(server, len(events)):
            await asyncio.sleep(0)
        server.kill()
        with pytest.raises(BrokerAway):
            await publishing
        with pytest.raises(BrokerAway):
            await sink.publish(events)
    server.start()
    async with opened(server) as sink:
        known = await sink.publish(events)
    stored = [message.headers["Nats-Msg-Id"] for message in await server.messages()]
    assert sorted(stored) == sorted(f"evt_{n}" for n in range(1, 1_001)), "each once"
    assert 0 < known < len(events), "it died in the middle"


async def _some_but_not_all(server: NatsServer, count: int) -> bool:
    client = await nats.connect(server.url)
    stored = (await client.jetstream().stream_info(STREAM)).state.messages
    await client.close()
    assert stored < count, "it was all over before it could be killed"
    return stored > 0


async def test_where_nobody_listens_opening_fails_soon_and_says_so() -> None:
    with short_directory() as data_dir:
        sink = NatsSink(NatsServer(data_dir / "never-started").url)
        async with asyncio.timeout(5):
            with pytest.raises(BrokerAway, match=r"Connect call failed|refused"):
                await sink.open()
        await sink.close()


async def test_a_listener_that_keeps_silent_is_given_up() -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    sink = NatsSink(f"nats://127.0.0.1:{silent.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(6):
        with pytest.raises(BrokerAway):
            await sink.open()
    await sink.close()
    silent.close()
    await silent.wait_closed()


async def test_of_several_servers_one_that_answers_is_found(server: NatsServer) -> None:
    with short_directory() as data_dir:
        dead = NatsServer(data_dir / "never-started").url
    for _ in range(3):  # the client shuffles them
        sink = NatsSink(f"{dead}, {server.url}")
        await sink.open()
        assert await sink.publish([event(1)]) in {0, 1}
        await sink.close()


async def test_wrong_credentials_are_a_refusal_without_the_password() -> None:
    with short_directory() as data_dir:
        server = NatsServer(data_dir / "jetstream", "--user", "couponsvc", "--pass", "right-one")
        server.start()
        try:
            sink = NatsSink(f"nats://couponsvc:wrong-one@127.0.0.1:{server.port}")
            with pytest.raises(BrokerRefuses, match=r"(?i)authorization") as refusal:
                await sink.open()
            await sink.close()
            assert "wrong-one" not in f"{refusal.value!r} {refusal.value}"
            sink = NatsSink(f"nats://couponsvc:right-one@127.0.0.1:{server.port}")
            await sink.open()
            assert await sink.publish([event(1)]) == 0
            await sink.close()
        finally:
            server.kill()


async def test_a_subject_that_is_forbidden_is_a_refusal_that_names_it() -> None:
    with short_directory() as data_dir:
        config = data_dir / "nats.conf"
        config.write_text(
            "authorization: {users: [{user: u, password: p, permissions: "
            '{publish: ["$JS.API.>"], subscribe: ">"}}]}'
        )
        server = NatsServer(data_dir / "jetstream", "-c", str(config))
        server.start()
        try:
            sink = NatsSink(f"nats://u:p@127.0.0.1:{server.port}")
            await sink.open()
            with pytest.raises(BrokerRefuses, match=r"(?i)permissions violation.*couponsvc.events.bank-a"):
                await sink.publish([event(1)])
            await sink.close()
        finally:
            server.kill()


async def test_a_close_whose_last_write_fails_leaves_no_task_behind(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broker that dies while we close: the library gives up its own clean-up half-way. That no task is
    # left is checked after every test.
    sink = NatsSink(server.url)
    await sink.open()
    client = sink._client  # noqa: SLF001 - the network does this to it
    assert client is not None
    transport = client._transport  # noqa: SLF001
    assert transport is not None

    async def say_one_thing_more() -> None:
        client._pending, client._pending_data_size = [b"PING\r\n"], 6  # noqa: SLF001

    async def broken() -> None:
        transport.close()  # type: ignore[no-untyped-call]
        raise ConnectionResetError

    monkeypatch.setattr(client, "_flush_pending", say_one_thing_more)
    monkeypatch.setattr(transport, "drain", broken)
    await sink.close()
