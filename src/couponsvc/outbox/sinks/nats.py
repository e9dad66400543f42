"""NATS JetStream as a sink: one message per event, de-duplicated by the event's id.

A subject names the partner first (`couponsvc.events.<partner_id>.<drop_id>.<type>`), so that an
account can be given one partner's events and nobody else's person tokens. The stream is made where
it is missing and never altered: how long it keeps what, and how often, is its operator's business.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header, StorageType, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses, address_of
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks
from couponsvc.values.event import Event

STREAM: Final = "couponsvc-events"
SUBJECTS: Final = "couponsvc.events"
CONTENT_TYPE: Final = "application/cloudevents+json"

DEDUPLICATION_S: Final = 120.0
"""How far back the stream knows ids (JetStream's own default): far past the lease and the retries after
which another relay repeats what one had published."""
CONNECT_TIMEOUT_S: Final = 2
OPEN_TIMEOUT_S: Final = 8.0
"""Over everything: several servers may be named, and each may keep silent."""
PUBLISH_TIMEOUT_S: Final = 10.0
"""From the first event of a call to the last acknowledgement: 22 MB at most. A living server needs far less,
and a lease must not end meanwhile."""
ACK_TIMEOUT_S: Final = 5.0
"""Of one event, and of a question about the stream."""
CLOSE_TIMEOUT_S: Final = 1.0
FORBIDDEN: Final = ("authorization violation", "permissions violation")
"""What nats-server says of credentials and of subjects that they do not open."""
WINDOW_COUNT: Final = 64
"""Events on their way at once: enough to hide the way there and back; 11 MB where all are full."""

_log = logs.get("couponsvc.outbox.sinks.nats")


class NatsSink:
    """Publishes to the stream `couponsvc-events`, which it makes where there is none."""

    name: Final = "nats"

    def __init__(self, url: str) -> None:
        """`url`: `nats://host:4222` or `tls://…`, with credentials if any; several with commas."""
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        self._client: Client | None = None
        self._stream: JetStreamContext | None = None
        self._lost: asyncio.Future[None] | None = None
        self._said: Exception | None = None
        """What the server or the network said last, which nobody was waiting for."""
        self._window = asyncio.Semaphore(WINDOW_COUNT)

    async def open(self) -> None:
        """Connect, and make the stream where there is none.

        Raises:
            BrokerAway: no server answers.
            BrokerRefuses: credentials, permissions, or a server without JetStream.
        """
        self._said = None
        self._lost = asyncio.get_running_loop().create_future()
        client = self._client = Client()
        with self._errors_of_ours():
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await client.connect(
                    self._servers,
                    name="couponsvc relay",
                    allow_reconnect=False,  # the feeder opens anew; a connection is never replaced unseen
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    error_cb=self._remember,
                    closed_cb=self._closed,
                )
                stream = client.jetstream(timeout=ACK_TIMEOUT_S)
                await self._find_or_make_stream(stream)
        self._stream = stream

    async def publish(self, events: Sequence[Event]) -> int:
        """Store events; see `Sink.publish`. At most WINDOW_COUNT are on their way at once.

        Raises:
            BrokerAway: the connection ended, or an acknowledgement did not come in time.
            BrokerRefuses: the server said no, e.g. to the size, or another stream took the event.
        """
        if self._stream is None or self._lost is None:
            raise BrokerAway("not connected")
        tasks = [asyncio.create_task(self._store(self._stream, event)) for event in events]
        storing: asyncio.Future[list[bool]] = asyncio.gather(*tasks)
        lost: asyncio.Future[Any] = self._lost
        try:
            with self._errors_of_ours():
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    await asyncio.wait([storing, lost], return_when=asyncio.FIRST_COMPLETED)
                if not storing.done():
                    raise ConnectionError("the connection ended before every acknowledgement had come")
                return sum(storing.result())
        finally:
            await end_tasks(*tasks, storing)

    async def close(self) -> None:
        """Disconnect."""
        client, self._client, self._stream = self._client, None, None
        if client is not None:
            with suppress(Exception):
                await asyncio.wait_for(client.close(), CLOSE_TIMEOUT_S)
            # Where its last write fails, the client (2.16) leaves the tasks of its subscriptions behind.
            for subscription in list(client._subs.values()):  # noqa: SLF001 - it has no other way to them
                subscription._stop_processing()  # noqa: SLF001

    async def _remember(self, error: Exception) -> None:
        """Hear of an error that no call raised; one about permissions would only show as silence."""
        self._said = error
        if _forbids(error):
            await self._closed()

    async def _closed(self) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def _store(self, stream: JetStreamContext, event: Event) -> bool:
        """Publish one event and await its acknowledgement; whether the stream had it already."""
        async with self._window:
            ack = await stream.publish(
                subject_of(event), event.body, stream=STREAM, headers=headers_of(event)
            )
        if ack.stream != STREAM:
            raise BrokerRefuses(f"the stream {ack.stream} took what was meant for {STREAM}")
        return bool(ack.duplicate)

    async def _find_or_make_stream(self, stream: JetStreamContext) -> None:
        try:
            await stream.stream_info(STREAM)
        except NotFoundError:
            await stream.add_stream(
                StreamConfig(
                    name=STREAM,
                    description="Events of couponsvc: CloudEvents, one a message, Nats-Msg-Id is the id",
                    subjects=[f"{SUBJECTS}.>"],
                    storage=StorageType.FILE,
                    duplicate_window=DEDUPLICATION_S,
                )
            )
            _log.info("stream_made", stream=STREAM)

    @contextmanager
    def _errors_of_ours(self) -> Iterator[None]:
        """Turn what nats-py raises into BrokerAway or BrokerRefuses. No text of it holds the URL."""
        try:
            yield
        except (nats.errors.AuthorizationError, nats.errors.MaxPayloadError) as error:
            raise BrokerRefuses(str(error)) from error
        except (NoStreamResponseError, nats.errors.NoRespondersError) as error:
            raise BrokerRefuses(
                f"nothing takes {SUBJECTS}.…: JetStream is off, or the stream {STREAM} has other subjects"
            ) from error
        except msgspec.DecodeError as error:
            raise BrokerRefuses("an event is not a CloudEvent of ours") from error
        except (APIError, nats.errors.Error, OSError) as error:  # TimeoutError is an OSError
            if self._said is not None and _forbids(self._said):
                raise BrokerRefuses(str(self._said)) from error
            nobody = isinstance(error, nats.errors.NoServersError) and self._said is not None
            reason = self._said if nobody else error  # what the last of the servers said, or did not
            kind = BrokerRefuses if _is_a_no(error) else BrokerAway
            raise kind(str(reason) or type(reason).__name__) from error


def _forbids(error: Exception) -> bool:
    return any(words in str(error).lower() for words in FORBIDDEN)


def _is_a_no(error: Exception) -> bool:
    """Whether JetStream refused; 503 is what it says while it has no leader or is full for a moment."""
    return isinstance(error, APIError) and not isinstance(error, ServiceUnavailableError)


def subject_of(event: Event) -> str:
    """`couponsvc.events.<partner_id>.<drop_id>.voucher.issued.v1`; `-` where there is no drop."""
    address = address_of(event)
    return f"{SUBJECTS}.{address.partner_id}.{address.drop_id}.{event.kind.public.partition('.')[2]}"


def headers_of(event: Event) -> dict[str, str]:
    """What goes beside an event: the id that JetStream de-duplicates by, and what the body is."""
    return {Header.MSG_ID.value: event.event_id, "content-type": CONTENT_TYPE}
