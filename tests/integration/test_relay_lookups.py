"""Name servers that hang beside receivers that do well: whose failure it is, and who waits for whom."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from couponsvc.outbox import metrics
from couponsvc.outbox.leasing import Pool
from couponsvc.settings import Settings
from couponsvc.support import guarded_url
from couponsvc.support.guarded_url import NameLookup, TooManyLookUps
from couponsvc.values.event import EventType
from tests.integration.scene import make_drop
from tests.receivers import Receiver, attempts, queue, subscribe, subscription
from tests.relays import at_work, opened, tell

pytestmark = pytest.mark.slow

ISSUED = [EventType.VOUCHER_ISSUED.public]
SLOW_S = 0.2
PATIENCE_S = 20.0
SEVERAL_TRIES_S = 2.5


class NameServer:
    """Answers like the system's, except for names under `hangs.test`: with loopback, once it goes on."""

    def __init__(self) -> None:
        self.ask = socket.getaddrinfo
        self.asked: list[str] = []
        self.goes_on = threading.Event()

    def __call__(self, host: str | None, *arguments: Any, **options: Any) -> Any:
        if host is None or not host.endswith(".hangs.test"):
            return self.ask(host, *arguments, **options)
        self.asked.append(host)
        self.goes_on.wait(60)
        return self.ask("127.0.0.1", *arguments, **options)


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[NameServer]":
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.goes_on.set()


async def asked(server: NameServer, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(server.asked) < count:
            await asyncio.sleep(0.01)


def untried_count() -> float:
    (metric,) = metrics.untried.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))


async def test_what_cannot_be_looked_up_for_others_has_not_failed_and_is_sent_when_it_can(
    settings: Settings, pool: Pool, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_url, "LOOKUPS_MAX_COUNT", 2)
    drop = await make_drop(pool)
    before = untried_count()
    async with Receiver().listening() as receiver, opened(settings) as relay, at_work(relay):
        for name in ("a", "b"):
            await subscribe(pool, f"http://{name}.hangs.test:{receiver.port}/", types=ISSUED)
        await tell(pool, drop, 1)
        await asked(name_server, 2)
        well = await subscribe(pool, f"http://localhost:{receiver.port}/well", types=ISSUED)
        await tell(pool, drop, 1)
        await asyncio.sleep(SEVERAL_TRIES_S)
        (waiting,) = await queue(pool, well.subscription_no)
        assert waiting["attempt_count"] == 0
        assert await attempts(pool, well.subscription_no) == []
        assert (await subscription(pool, well.subscription_no))["failure_count"] == 0
        tries_count = untried_count() - before
        assert 0 < tries_count < 20, "about once a second, and not as often as can be"
        name_server.goes_on.set()
        async with asyncio.timeout(PATIENCE_S):
            while await queue(pool, well.subscription_no):
                await asyncio.sleep(0.01)
        (attempt,) = await attempts(pool, well.subscription_no)
        assert (attempt["attempt_no"], attempt["outcome"]) == (1, "delivered")


async def test_a_hundred_names_whose_server_hangs_leave_room_for_one_that_answers(
    name_server: NameServer,
) -> None:
    """All that a relay can begin to post at once, two at each endpoint of which nothing is known."""
    look_up = NameLookup()
    hanging = [asyncio.create_task(look_up(f"n{n}.hangs.test")) for n in range(128)]
    await asked(name_server, 128)
    assert "127.0.0.1" in await look_up("localhost")
    name_server.goes_on.set()
    assert await asyncio.gather(*hanging) == [["127.0.0.1"]] * 128


async def test_names_that_were_slow_share_a_part_of_the_threads_until_they_are_quick(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_url, "LOOKUPS_MAX_COUNT", 4)
    monkeypatch.setattr(guarded_url, "LOOKUPS_SLOW_MAX_COUNT", 2)
    monkeypatch.setattr(guarded_url, "LOOKUP_SLOW_S", SLOW_S)
    look_up = NameLookup()
    names = [f"{name}.hangs.test" for name in "abc"]
    first = [asyncio.create_task(look_up(name)) for name in names]
    await asked(name_server, 3)
    await asyncio.sleep(2 * SLOW_S)
    name_server.goes_on.set()
    await asyncio.gather(*first)

    name_server.goes_on.clear()
    again = [asyncio.create_task(look_up(name)) for name in names[:2]]
    await asked(name_server, 5)
    with pytest.raises(TooManyLookUps):
        await look_up(names[2])
    assert await look_up("localhost"), "who is not slow has the other two"
    name_server.goes_on.set()
    await asyncio.gather(*again)
    await look_up(names[2])  # quick, now

    monkeypatch.setattr(guarded_url, "LOOKUPS_SLOW_MAX_COUNT", 0)
    assert await look_up(names[2]) == ["127.0.0.1"]
