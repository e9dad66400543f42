"""Kafka as a sink, as far as that can be told without a broker."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import errors as kafka_errors  # type: ignore[import-untyped]

from couponsvc import limits
from couponsvc.outbox.sinks import kafka
from couponsvc.outbox.sinks.kafka import KafkaAccess, KafkaSink, producer_options, record_of
from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses
from tests.brokers import event


def access(servers: str, **options: Any) -> KafkaAccess:
    return KafkaAccess(servers, "couponsvc.events", **options)


def test_a_record_is_the_event_as_everywhere_keyed_by_partner_and_drop() -> None:
    sent = event(7, partner_id="bank-b", drop_id="drop-1")
    record = record_of(sent)
    assert record.key == b"bank-b/drop-1"
    assert record.value == sent.body
    assert record.headers == [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    assert record.timestamp_ms == sent.occurred_ms


def test_an_event_of_no_drop_has_a_key_of_its_own() -> None:
    assert record_of(event(7, drop_id=None)).key == b"bank-a/-"


def test_the_producer_is_idempotent_and_waits_for_all_replicas() -> None:
    options = producer_options(access("a:1, b:2"))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert (options["enable_idempotence"], options["acks"]) == (True, "all")
    assert options["security_protocol"] == "PLAINTEXT"
    assert "ssl_context" not in options


@pytest.mark.parametrize(("tls", "protocol"), [(True, "SASL_SSL"), (False, "SASL_PLAINTEXT")])
def test_a_log_in_is_by_scram(tls: bool, protocol: str) -> None:  # noqa: FBT001
    options = producer_options(access("a:1", tls=tls, username="couponsvc", password="secret"))
    assert (options["security_protocol"], options["sasl_mechanism"]) == (protocol, "SCRAM-SHA-512")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("couponsvc", "secret")


def test_tls_checks_the_name_of_the_broker() -> None:
    context = producer_options(access("a:1", tls=True))["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


async def test_the_client_takes_every_option_that_it_is_given() -> None:
    sink = KafkaSink(access("127.0.0.1:1"))
    with pytest.raises(BrokerAway):
        await sink.open()
    await sink.close()


def test_a_full_event_with_the_longest_tokens_fits_a_record_and_a_batch() -> None:
    voucher_max_bytes = 540
    longest = limits.EVENT_VOUCHERS_MAX_COUNT * voucher_max_bytes
    assert longest * 2 <= kafka.BATCH_MAX_BYTES * 2 <= kafka.RECORD_MAX_BYTES * 2


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (kafka_errors.TopicAuthorizationFailedError("couponsvc.events"), BrokerRefuses),
        (kafka_errors.MessageSizeTooLargeError(), BrokerRefuses),
        (kafka_errors.UnsupportedSaslMechanismError(), BrokerRefuses),
        (kafka_errors.AuthenticationFailedError("no"), BrokerRefuses),
        (kafka_errors.UnknownTopicOrPartitionError(), BrokerAway),
        (kafka_errors.NotEnoughReplicasError(), BrokerAway),
        (kafka_errors.KafkaTimeoutError(), BrokerAway),
        (kafka_errors.KafkaConnectionError("nobody"), BrokerAway),
        (kafka_errors.RequestTimedOutError(), BrokerAway),
        (ConnectionResetError(), BrokerAway),
        (TimeoutError(), BrokerAway),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_errors_say_whether_waiting_helps(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as told, kafka.errors_of_ours():
        raise raised
    assert str(told.value), "an operator is told something"


async def test_where_nobody_listens_opening_fails_soon_and_says_so() -> None:
    began_s = time.monotonic()
    sink = KafkaSink(access("127.0.0.1:1"))
    with pytest.raises(BrokerAway, match=r"127\.0\.0\.1"):
        await sink.open()
    await sink.close()
    assert time.monotonic() - began_s < kafka.OPEN_TIMEOUT_S
    with pytest.raises(BrokerAway, match="not connected"):
        await sink.publish([event(1)])


async def test_a_listener_that_speaks_something_else_is_given_up() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with _listening(greet) as port:
        sink = KafkaSink(access(f"127.0.0.1:{port}"))
        async with asyncio.timeout(kafka.OPEN_TIMEOUT_S + 1):
            with pytest.raises(BrokerAway):
                await sink.open()
        await sink.close()


async def test_a_listener_that_keeps_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(kafka, "OPEN_TIMEOUT_S", 0.5)
    async with _listening(keep_silent) as port:
        sink = KafkaSink(access(f"127.0.0.1:{port}"))
        async with asyncio.timeout(3):
            with pytest.raises(BrokerAway):
                await sink.open()
            await sink.close()


@asynccontextmanager
async def _listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
