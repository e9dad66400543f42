"""Brokers that events are also published to, each by one relay at a time.

None is needed. Their clients are imported only where a broker is configured.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

import asyncpg

from couponsvc.outbox.reading import EventReader
from couponsvc.outbox.sinks.feeding import Feeder
from couponsvc.outbox.sinks.sink import ExtraMissing, Sink
from couponsvc.settings import Settings


def configured_sinks(settings: Settings) -> list[Sink]:
    """The brokers that settings name; connects to none.

    Raises:
        ExtraMissing: a client is not installed. Ends the process: an operator asked for what is not there.
    """
    sinks: list[Sink] = []
    if settings.nats_url is not None:
        try:
            from couponsvc.outbox.sinks.nats import NatsSink  # noqa: PLC0415 - an optional extra
        except ModuleNotFoundError as error:
            raise ExtraMissing("COUPONSVC_NATS_URL", "nats") from error
        sinks.append(NatsSink(settings.nats_url.get_secret_value()))
    if settings.kafka_servers is not None:
        try:
            from couponsvc.outbox.sinks.kafka import KafkaAccess, KafkaSink  # noqa: PLC0415 - an optional extra
        except ModuleNotFoundError as error:
            raise ExtraMissing("COUPONSVC_KAFKA_SERVERS", "kafka") from error
        password = settings.kafka_password
        sinks.append(
            KafkaSink(
                KafkaAccess(
                    settings.kafka_servers,
                    settings.kafka_topic,
                    tls=settings.kafka_tls,
                    username=settings.kafka_username,
                    password=password.get_secret_value() if password else None,
                )
            )
        )
    return sinks


async def run_sinks(  # noqa: PLR0917 - everything a relay has, in the order that it makes it
    settings: Settings,
    pool: "asyncpg.Pool[asyncpg.Record]",
    reader: EventReader,
    relay_no: Callable[[], int | None],
    clock: Callable[[], datetime],
    stop: asyncio.Event,
) -> None:
    """Feed every configured broker until `stop` is set; returns at once where none is.

    Args:
        settings: which brokers, and where a new one begins.
        pool: to the ledger.
        reader: of events.
        relay_no: this relay's number, or None while it does not hold the lock that says it lives.
        clock: aware UTC.
        stop: set to end; returns within seconds.

    Raises:
        ExtraMissing: a client is not installed.
    """
    feeders = [
        Feeder(
            sink,
            pool=pool,
            reader=reader,
            relay_no=relay_no,
            clock=clock,
            from_now=settings.sinks_start == "now",
        )
        for sink in configured_sinks(settings)
    ]
    await asyncio.gather(*(feeder.run(stop) for feeder in feeders))
