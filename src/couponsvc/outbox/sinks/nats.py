"""NATS JetStream as a sink: one message per event, de-duplicated by the event's id.

A subject names the partner first (`couponsvc.events.<partner_id>.<drop_id>.<type>`), so that an
account can be given one partner's events and nobody else's person tokens. What may be a repeat is
looked for in the stream first: JetStream itself knows ids for minutes only, and a repeat may come later.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from couponsvc.outbox.sinks.nats_held import held_of
from couponsvc.outbox.sinks.nats_stream import (
    DEDUPLICATION_S,
    STREAM,
    SUBJECTS,
    faults_of,
    find_or_make,
    subject_of,
)
from couponsvc.outbox.sinks.sink import BrokerAway, BrokerRefuses
from couponsvc.support import logs
from couponsvc.support.ending import end_tasks
from couponsvc.values.event import Event

__all__ = ["DEDUPLICATION_S", "STREAM", "WINDOW_COUNT", "NatsSink", "headers_of", "subject_of"]

CONTENT_TYPE: Final = "application/cloudevents+json"

CONNECT_TIMEOUT_S: Final = 2
OPEN_TIMEOUT_S: Final = 8.0
"""Over everything: several servers may be named, and each may keep silent."""
LOOK_TIMEOUT_S: Final = 2.0
"""For looking through the stream before a repeat; past it everything is published. With opening and
publishing it must fit into what a turn has left of its lease."""
PUBLISH_TIMEOUT_S: Final = 10.0
"""From the first event of a call to the last acknowledgement: 22 MB at most. A living server needs far less,
and a lease must not end meanwhile."""
ACK_TIMEOUT_S: Final = 5.0
"""Of one event, and of a question about the stream."""
CLOSE_TIMEOUT_S: Final = 1.0
FORBIDDEN: Final = ("authorization violation", "permissions violation")
"""What nats-server says of credentials and of subjects that they do not open."""
LOOKING: Final = f"$JS.API.STREAM.MSG.GET.{STREAM}"
"""What an account must be allowed to publish so that it may look through the stream."""
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
        self._looking: asyncio.Task[frozenset[str]] | None = None
        self._tried_no: int | None = None
        """The newest event that was tried since opening: up to it, the stream may hold what is not noted."""
        self._faults: tuple[str, ...] = ()
        """What was last told of the stream's settings; the same is not told again."""

    async def open(self) -> None:
        """Connect, and make the stream where there is none.

        Raises:
            BrokerAway: no server answers.
            BrokerRefuses: credentials, permissions, or a server without JetStream.
        """
        self._said = self._tried_no = None
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
                self._tell(faults_of(await find_or_make(stream)))
        self._stream = stream

    async def publish(self, events: Sequence[Event]) -> int:
        """Store events; see `Sink.publish`. At most WINDOW_COUNT are on their way at once.

        The first after opening, and those that were tried before, are looked for in the stream, and what
        it holds is left out.

        Raises:
            BrokerAway: the connection ended, or an acknowledgement did not come in time.
            BrokerRefuses: the server said no, e.g. to the size, or another stream took the event.
        """
        if self._stream is None or self._lost is None:
            raise BrokerAway("not connected")
        stream = self._stream
        lost: asyncio.Future[Any] = self._lost
        held = await self._held(stream, lost, events)
        missing = [event for event in events if event.event_id not in held]
        tasks = [asyncio.create_task(self._store(stream, event)) for event in missing]
        storing: asyncio.Future[list[bool]] = asyncio.gather(*tasks)
        try:
            with self._errors_of_ours():
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    await asyncio.wait([storing, lost], return_when=asyncio.FIRST_COMPLETED)
                if not storing.done():
                    raise ConnectionError("the connection ended before every acknowledgement had come")
                return len(held) + sum(storing.result())
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
        if LOOKING.lower() in str(error).lower():  # then a repeat may be stored twice; see _held
            if self._looking is not None:
                self._looking.cancel()
            return
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

    async def _held(
        self, stream: JetStreamContext, lost: "asyncio.Future[Any]", events: Sequence[Event]
    ) -> frozenset[str]:
        """Ids that the stream holds already; none where this is no repeat, or the stream cannot be read.

        Never raises: what is not found is published, and stored twice at worst.
        """
        may_repeat = self._tried_no is None or events[0].event_no <= self._tried_no
        self._tried_no = events[-1].event_no
        if not may_repeat:
            return frozenset()
        looking = self._looking = asyncio.create_task(held_of(stream, events))
        try:
            await asyncio.wait([looking, lost], timeout=LOOK_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._looking = None
            await end_tasks(looking)
        if not looking.cancelled() and looking.exception() is None:
            return looking.result()
        if not lost.done():
            why = "not in time, or not allowed" if looking.cancelled() else repr(looking.exception())
            _log.warning("stream_unread", stream=STREAM, error=why, allow=LOOKING)
        return frozenset()

    def _tell(self, faults: tuple[str, ...]) -> None:
        """Warn of the stream's settings, when they are seen first or have changed."""
        if faults != self._faults:
            for fault in faults:
                _log.warning("stream_unfit", stream=STREAM, change=fault)
        self._faults = faults

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


def headers_of(event: Event) -> dict[str, str]:
    """What goes beside an event: the id that JetStream de-duplicates by, and what the body is."""
    return {Header.MSG_ID.value: event.event_id, "content-type": CONTENT_TYPE}
