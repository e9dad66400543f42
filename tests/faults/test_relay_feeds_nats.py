"""Relays that feed a broker, as processes: killed while they feed, started without the broker's client."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import asyncpg
import pytest
from pydantic import SecretStr

from couponsvc.settings import Settings
from couponsvc.values.event import EventType
from tests.brokers import NatsServer
from tests.faults import relay_process
from tests.integration.scene import issue, make_drop
from tests.servers import short_directory

pytestmark = pytest.mark.faults

PATIENCE_S = 30.0
SOON_S = 10.0
"""A third of a lease: nobody waited for its end."""
WITHOUT_NATS = """
import sys
sys.modules["nats"] = None
sys.argv[1:] = ["relay"]
from couponsvc.cli import main
main()
"""

Pool = asyncpg.Pool


async def test_a_relay_killed_while_it_feeds_is_followed_by_another_and_nothing_is_stored_twice(
    settings: Settings, pool: "Pool[asyncpg.Record]", tmp_path: Path
) -> None:
    drop = await make_drop(pool, quantity=5_000)
    with short_directory() as data_dir:
        server = NatsServer(data_dir / "jetstream")
        server.start()
        settings = settings.model_copy(update={"nats_url": SecretStr(server.url)})
        try:
            with (
                relay_process.running(settings, tmp_path / "first.log") as first,
                relay_process.running(settings, tmp_path / "second.log") as second,
            ):
                for _ in range(200):
                    await issue(pool, drop, 5)
                await _until(pool, lambda fed, _: fed > 0)
                first.signal(signal.SIGKILL)
                for _ in range(200):
                    await issue(pool, drop, 5)
                killed_at = monotonic()
                await _until(pool, lambda fed, newest: fed == newest)
                assert monotonic() - killed_at < SOON_S
                assert second.process.poll() is None
            messages = await server.messages()
        finally:
            server.kill()
    numbers = [int(message.headers["Nats-Msg-Id"].removeprefix("evt_")) for message in messages]
    newest = await pool.fetchval("SELECT last_event_no FROM event_counter")
    assert sorted(numbers) == list(range(1, newest + 1))
    vouchers = sum(message.data.count(b'"voucher_id":') for message in messages)
    assert vouchers == 2_000
    issued = [
        message for message in messages if message.subject.endswith(EventType.VOUCHER_ISSUED.public[10:])
    ]
    assert {message.subject.split(".")[3] for message in issued} == {drop.drop_id}


def test_a_relay_without_the_brokers_client_says_which_extra_to_install(settings: Settings) -> None:
    environment = os.environ | {
        "COUPONSVC_REDIS_URL": settings.redis_url,
        "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "COUPONSVC_MASTER_KEY": settings.master_key.get_secret_value(),
        "COUPONSVC_NATS_URL": "nats://couponsvc:not-to-be-told@127.0.0.1:1",
    }
    ended = subprocess.run(  # noqa: S603 - our own interpreter and text
        [sys.executable, "-c", WITHOUT_NATS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "COUPONSVC_NATS_URL" in ended.stderr
    assert "couponsvc[nats]" in ended.stderr
    assert "not-to-be-told" not in ended.stderr + ended.stdout


async def _until(pool: "Pool[asyncpg.Record]", holds: Callable[[int, int], bool]) -> None:
    """Wait until it holds of the broker's number and the newest one, with nothing left to be numbered."""
    query = (
        "SELECT coalesce((SELECT last_event_no FROM sinks), 0), (SELECT last_event_no FROM event_counter), "
        "(SELECT count(*) FROM outbox)"
    )
    async with asyncio.timeout(PATIENCE_S):
        while True:
            fed, newest, unnumbered = await pool.fetchrow(query) or (0, 0, 0)
            if holds(fed, newest) and (fed < newest or not unnumbered):
                return
            await asyncio.sleep(0.02)
