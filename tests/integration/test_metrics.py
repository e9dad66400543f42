"""Metrics of several processes add up, also after one was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.settings import Settings
from tests.integration.house import House

PROCESS = """
import sys
from couponsvc.support import metrics
grabs = metrics.counter("test_grabs", "Grabs.", ["outcome"])
queued = metrics.gauge("test_queued", "Queued.")
took = metrics.histogram("test_seconds", "Time.")
grabs.labels("granted").inc(int(sys.argv[1]))
queued.set(int(sys.argv[1]))
took.observe(0.003)
print("counted", flush=True)
sys.stdin.read()
"""
READER = """
import sys
from couponsvc.support import metrics
for pid in sys.argv[1:]:
    metrics.forget_process(int(pid))
print(metrics.render().decode())
"""


def read(metrics_dir: Path, *dead: int) -> dict[str, float]:
    """Samples as a process of their own reads them, after it forgot the dead ones."""
    output = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", READER, *map(str, dead)],
        env=environment(metrics_dir),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    samples = (line.rsplit(" ", 1) for line in output.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, value in samples}


def environment(metrics_dir: Path) -> dict[str, str]:
    return {**os.environ, "COUPONSVC_METRICS_DIR": str(metrics_dir)}


def count_in_a_process(metrics_dir: Path, number: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PROCESS, str(number)],
        env=environment(metrics_dir),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_counts_of_two_processes_add_up_and_survive_a_killed_one(tmp_path: Path) -> None:
    first, second = count_in_a_process(tmp_path, 5), count_in_a_process(tmp_path, 7)
    try:
        both = read(tmp_path)
        assert both['test_grabs_total{outcome="granted"}'] == 12
        assert both["test_seconds_count"] == 2
        assert both["test_queued"] == 12
        first.send_signal(signal.SIGKILL)
        first.wait()
        after = read(tmp_path, first.pid)
        assert after['test_grabs_total{outcome="granted"}'] == 12
        assert after["test_seconds_count"] == 2
        assert after["test_queued"] == 7
    finally:
        end(first)
        end(second)


def test_a_gauge_that_would_outlive_its_process_is_refused() -> None:
    from couponsvc.support import metrics  # noqa: PLC0415 - beside the processes above, which import their own

    with pytest.raises(ValueError, match="dead process"):
        metrics.gauge("test_undead", "Undead.", of_all="max")


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def test_requests_are_counted_by_route_and_status_without_naming_anybody(house: House) -> None:
    await house.drop("canary-drop")
    await house.issue("canary-drop", "canary-person")
    await house.call("GET", "/v1/drops/canary-drop/grabs/n-canary-person", by="bank-a")
    await house.call("GET", "/v1/vouchers?drop_id=canary-drop&person_token=canary-person", by="bank-a")
    await house.call("GET", "/v1/canary-path")
    await house.call("BREW", "/v1/drops/canary-drop")
    shown = (await house.call("GET", "/metrics", by=None)).text
    assert "canary" not in shown
    for sample in (
        'method="GET",route="/v1/drops/{drop_id}/grabs/{out_request_no}",status="200"',
        'method="GET",route="none",status="404"',
        'method="OTHER",route="/v1/drops/{drop_id}",status="405"',
    ):
        assert f"couponsvc_http_requests_total{{{sample}}}" in shown
