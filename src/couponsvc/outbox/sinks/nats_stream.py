"""The stream `couponsvc-events`: made where it is missing; an operator's own is looked at, never altered.

How long it keeps what, and how often, is its operator's business. But what of its settings can lose
events, or keep them twice, is told.
"""

from typing import Final

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from couponsvc.outbox.sinks.sink import address_of
from couponsvc.support import logs
from couponsvc.values.event import Event

STREAM: Final = "couponsvc-events"
SUBJECTS: Final = "couponsvc.events"
EVERY_SUBJECT: Final = f"{SUBJECTS}.>"

DEDUPLICATION_S: Final = 120.0
"""How far back the server itself knows ids (its own default). That covers what is on its way at once: of two
relays, or of one that repeats at once. A repeat may come hours later, so the stream is looked through then
(`nats_held`). A longer window would have to be longer than any outage, and the server holds every id of it in
memory."""
KEPT_MIN_COUNT: Final = 1_000_000
"""Below this, `discard old` may drop what no consumer has read yet: a city's day is a million vouchers, at
worst one an event, and a consumer may be away for a night."""
KEPT_MIN_BYTES: Final = 1 << 30
"""The same in bytes: an event of one voucher has about 1 kB."""

_log = logs.get("couponsvc.outbox.sinks.nats")


async def find_or_make(stream: JetStreamContext) -> StreamConfig:
    """The stream's settings as they are; makes it where there is none.

    Raises:
        nats.js.errors.APIError, nats.errors.Error, TimeoutError: as the server or the network said.
    """
    try:
        return (await stream.stream_info(STREAM)).config
    except NotFoundError:
        made = await stream.add_stream(
            StreamConfig(
                name=STREAM,
                description="Events of couponsvc: CloudEvents, one a message, Nats-Msg-Id is the id",
                subjects=[EVERY_SUBJECT],
                storage=StorageType.FILE,
                duplicate_window=DEDUPLICATION_S,
            )
        )
        _log.info("stream_made", stream=STREAM)
        return made.config


def faults_of(config: StreamConfig) -> tuple[str, ...]:
    """What an operator should change in a stream of their own; one sentence each, none for ours."""
    faults = []
    if config.no_ack:
        faults.append(
            "no_ack: nothing is ever confirmed, so every turn ends in a timeout; set no_ack to false"
        )
    if config.storage != StorageType.FILE:
        faults.append(
            "storage is not file: a restart loses every event; make the stream anew with file storage"
        )
    if config.duplicate_window < DEDUPLICATION_S:
        faults.append(
            f"duplicate_window {config.duplicate_window:g} s: what two relays publish at once may be stored"
            f" twice; set at least {DEDUPLICATION_S:g} s"
        )
    if config.discard == DiscardPolicy.OLD:
        faults += [
            f"{name} {value} with discard old: drops events that nobody has read; set at least {least}, or"
            " discard new"
            for name, value, least in (
                ("max_msgs", config.max_msgs, KEPT_MIN_COUNT),
                ("max_msgs_per_subject", config.max_msgs_per_subject, KEPT_MIN_COUNT),
                ("max_bytes", config.max_bytes, KEPT_MIN_BYTES),
            )
            if value is not None and 0 < value < least
        ]
    return tuple(faults)


def subject_of(event: Event) -> str:
    """`couponsvc.events.<partner_id>.<drop_id>.voucher.issued.v1`; `-` where there is no drop.

    Raises:
        msgspec.DecodeError: the body is not one of our CloudEvents.
    """
    address = address_of(event)
    return f"{SUBJECTS}.{address.partner_id}.{address.drop_id}.{event.kind.public.partition('.')[2]}"
