"""Kafka as a sink: one record per event, in the structured mode of CloudEvents' Kafka binding.

The key is `<partner_id>/<drop_id>`, so one partition holds what a partner hears of a drop, in order.
The producer is idempotent and waits for all in-sync replicas. An event is written twice only where it
is published twice: after an error, or by the next relay; consumers de-duplicate by `id`.
"""

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka import errors as kafka_errors

from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses, address_of
from couponsvc.support.ending import end_tasks
from couponsvc.values.event import Event

CONTENT_TYPE: Final = b"application/cloudevents+json; charset=UTF-8"
"""The value of the binding's header `content-type` in structured mode."""
REQUEST_TIMEOUT_MS: Final = 5_000
"""Of one request, and how long the producer itself tries to place a record before it gives it up."""
OPEN_TIMEOUT_S: Final = 8.0
PUBLISH_TIMEOUT_S: Final = 12.0
"""Over a whole turn: the two request timeouts that aiokafka may take to give up, and a little. A lease must
not end meanwhile."""
CLOSE_TIMEOUT_S: Final = 2.0
CANCEL_AGAIN_S: Final = 0.05
RECORD_MAX_BYTES: Final = 1_000_000
"""A broker takes 1,048,588 unless told otherwise; a full event with the longest tokens has 270,000."""
BATCH_MAX_BYTES: Final = 512 * 1024
"""Of one partition's batch: two full events, where aiokafka's 16 kB would send each by itself."""

REFUSALS: Final = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidRequiredAcksError,
    kafka_errors.UnsupportedVersionError,
    kafka_errors.UnrecognizedBrokerVersion,
    kafka_errors.IncompatibleBrokerVersion,
    kafka_errors.PolicyViolationError,
)
"""What no waiting cures. A missing topic is not among them: many brokers make it upon the first question."""


class KafkaAccess(NamedTuple):
    """How to reach the brokers."""

    servers: str
    """`host:port`, several with commas."""
    topic: str
    tls: bool = False
    username: str | None = None
    """With it SASL: SCRAM-SHA-512."""
    password: str | None = None


class Record(NamedTuple):
    """An event as Kafka keeps it."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    timestamp_ms: int
    """When it happened, not when it was published: replays keep their time."""


class KafkaSink:
    """Publishes to one topic, which the brokers' operator has made."""

    name: Final = "kafka"

    def __init__(self, access: KafkaAccess) -> None:
        """`access`: how to reach the brokers, and where to write."""
        self._access = access
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Connect to the first broker that answers.

        Raises:
            BrokerAway: none does.
            BrokerRefuses: credentials or versions do not fit.
        """
        producer = self._producer = AIOKafkaProducer(**producer_options(self._access))
        with errors_of_ours():
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await producer.start()

    async def publish(self, events: Sequence[Event]) -> int:
        """Store events; see `Sink.publish`. Kafka does not say what it knew already.

        Raises:
            BrokerAway: not all were confirmed in time, or the topic is not there (yet).
            BrokerRefuses: a broker said no, e.g. to the size.
        """
        if self._producer is None:
            raise BrokerAway("not connected")
        with errors_of_ours():
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                confirmed = [await self._send(self._producer, record_of(event)) for event in events]
                await asyncio.gather(*confirmed)
        return 0

    async def close(self) -> None:
        """Disconnect; records that are not confirmed by now are published again later.

        Not by `AIOKafkaProducer.stop`, which waits for those records: where the brokers are away it
        does not return, and cancelling it leaves its tasks and connections behind.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer._closed = True  # noqa: SLF001 - says that it is not forgotten
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                # The first time, the sender only begins to wait for its requests. Its close waits as well.
                await end_tasks(producer._sender.sender_task, again_s=CANCEL_AGAIN_S)  # noqa: SLF001
                await producer.client.close()

    async def _send(self, producer: AIOKafkaProducer, record: Record) -> "asyncio.Future[Any]":
        sent: asyncio.Future[Any] = await producer.send(
            self._access.topic,
            value=record.value,
            key=record.key,
            headers=record.headers,
            timestamp_ms=record.timestamp_ms,
        )
        return sent


def producer_options(access: KafkaAccess) -> dict[str, Any]:
    """What the producer is made with; see aiokafka.AIOKafkaProducer."""
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in access.servers.split(",") if part.strip()],
        "client_id": "couponsvc-relay",
        "enable_idempotence": True,
        "acks": "all",
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "max_request_size": RECORD_MAX_BYTES,
        "max_batch_size": BATCH_MAX_BYTES,
        "compression_type": "gzip",  # the one that needs no further package
        "security_protocol": "SSL" if access.tls else "PLAINTEXT",
    }
    if access.tls:
        options["ssl_context"] = ssl.create_default_context()
    if access.username is not None:
        options |= {
            "security_protocol": "SASL_SSL" if access.tls else "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": access.username,
            "sasl_plain_password": access.password or "",
        }
    return options


def record_of(event: Event) -> Record:
    """An event as a record: structured mode, so its value is what webhooks and the feed carry too."""
    address = address_of(event)
    key = f"{address.partner_id}/{address.drop_id}".encode()
    return Record(key, event.body, [("content-type", CONTENT_TYPE)], event.occurred_ms)


@contextmanager
def errors_of_ours() -> Iterator[None]:
    """Turn what aiokafka raises into BrokerAway or BrokerRefuses. No text of it holds credentials."""
    try:
        yield
    except REFUSALS as error:
        raise BrokerRefuses(str(error)) from error
    except kafka_errors.UnknownTopicOrPartitionError as error:
        raise BrokerAway("the topic is not there; make it, or let the brokers make topics") from error
    except msgspec.DecodeError as error:
        raise BrokerRefuses("an event is not a CloudEvent of ours") from error
    except TimeoutError as error:
        raise BrokerAway("no confirmation in time") from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise BrokerAway(str(error) or type(error).__name__) from error
