"""`couponsvc events`: shows operators what is told and how it goes, never what is in it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from couponsvc.events_cli import events_app
from couponsvc.outbox import subscriptions
from couponsvc.processes.run_file import RunFile, write_run_file
from couponsvc.processes.running import ProcessFailed
from couponsvc.support.postgres import open_pool
from couponsvc.support.sealing import MasterKey
from couponsvc.values.event import SUBSCRIBABLE
from tests.conftest import MASTER_KEY
from tests.integration import scene
from tests.integration.feed import issue, number, prepare

Pool = asyncpg.Pool
URL = "https://user:pass@receiver.example:8443/hooks/s3cret?token=s3cret"


def on(dsn: str, work: Callable[["Pool[asyncpg.Record]"], Awaitable[Any]]) -> Any:
    """Do something with the database from a test that has no loop, as the command line has none."""

    async def whole() -> Any:
        async with await open_pool(dsn) as pool:
            return await work(pool)

    return asyncio.run(whole())


async def put_in_place(pool: "Pool[asyncpg.Record]") -> None:
    """Two partners, two drops, five events, and a subscription of bank-a's that took none yet."""
    await prepare(pool)
    await scene.make_drop(pool, "drop-a", quantity=100)
    await scene.make_drop(pool, "drop-b", quantity=100)
    await pool.execute("INSERT INTO partners (partner_id, name) VALUES ('bank-b', 'B')")
    await pool.execute(
        "INSERT INTO drop_partners SELECT 2, partner_no FROM partners WHERE partner_id = 'bank-b'"
    )
    await number(pool)
    await subscriptions.create(pool, MasterKey.from_base64(MASTER_KEY), 1, URL, list(SUBSCRIBABLE), None)
    await issue(pool, "drop-a", 3, "bank-a")
    await issue(pool, "drop-b", 2, "bank-b")
    await number(pool)


@pytest.fixture
def dsn(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COUPONSVC_POSTGRES_DSN", database)
    on(database, put_in_place)
    return database


def run(*arguments: str) -> str:
    result = CliRunner().invoke(events_app, list(arguments))
    if result.exception is not None:
        raise result.exception
    for secret in ("p-1", "CODE1", "s3cret", "user", MASTER_KEY):
        assert secret not in result.output, secret
    return result.stdout


def fails(*arguments: str) -> tuple[int, str]:
    with pytest.raises(ProcessFailed) as failed:
        run(*arguments)
    assert "\n" not in str(failed.value)
    return failed.value.exit_code, str(failed.value)


def lines(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("tail", "--json", *arguments).splitlines()]


def test_tail_shows_one_line_per_event_without_what_is_in_it(dsn: str) -> None:
    assert dsn
    shown = [line.split() for line in run("tail", "--after", "0").splitlines()]
    assert [line[1:] for line in shown] == [
        ["evt_1", "bank-a", "drop-a", "drop.opened"],
        ["evt_2", "bank-a", "drop-b", "drop.opened"],
        ["evt_3", "bank-b", "drop-b", "drop.opened"],
        ["evt_4", "bank-a", "drop-a", "voucher.issued", "3", "vouchers", "of", "1..3"],
        ["evt_5", "bank-b", "drop-b", "voucher.issued", "2", "vouchers", "of", "1..2"],
    ]
    assert all(datetime.fromisoformat(line[0]).tzinfo for line in shown)


def test_tail_picks_a_partner_a_beginning_and_a_number(dsn: str) -> None:
    assert dsn

    def picked(*arguments: str) -> list[str]:
        return [line["event_id"] for line in lines(*arguments)]

    assert picked() == ["evt_1", "evt_2", "evt_3", "evt_4", "evt_5"]
    assert picked("--limit", "2") == ["evt_4", "evt_5"], "the newest"
    assert picked("--limit", "2", "--after", "1") == ["evt_2", "evt_3"], "the next"
    assert picked("--after", "evt_3") == ["evt_4", "evt_5"]
    assert picked("--partner", "bank-b") == ["evt_3", "evt_5"]
    assert picked("--partner", "bank-b", "--limit", "1") == ["evt_5"]
    assert picked("--partner", "bank-b", "--after", "3") == ["evt_5"]
    assert picked("--after", "5") == []
    assert lines("--after", "3", "--limit", "1")[0].keys() == {
        "event_no", "occurred_at", "event_id", "partner_id", "drop_id", "type", "sequence", "voucher_count",
        "first_seq", "last_seq",
    }  # fmt: skip


def test_tail_says_where_it_cannot_begin_as_it_was_told(dsn: str) -> None:
    async def drop_oldest(pool: "Pool[asyncpg.Record]") -> None:
        await pool.execute("DELETE FROM events WHERE event_no <= 3")

    async def drop_all(pool: "Pool[asyncpg.Record]") -> None:
        await pool.execute("DELETE FROM events")

    def said(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(events_app, ["tail", *arguments])
        assert result.exit_code == 0
        return len(result.stdout.splitlines()), result.stderr

    assert said("--after", "99999") == (0, "couponsvc: there is no evt_99999 yet; the newest is evt_5\n")
    assert said("--after", "5") == (0, "")
    assert said("--after", "2", "--partner", "bank-a") == (1, ""), "the next is another partner's"
    on(dsn, drop_oldest)
    gone = "couponsvc: events up to evt_3 are no longer kept\n"
    assert said("--after", "1", "--json") == (2, gone)
    assert said("--after", "1", "--partner", "bank-b") == (1, gone)
    assert said("--after", "3") == said("--after", "0") == said() == (2, "")
    on(dsn, drop_all)
    assert said("--after", "1") == (0, "couponsvc: events up to evt_5 are no longer kept\n")


def test_what_is_not_there_or_not_understood_is_said_on_one_line(dsn: str) -> None:
    assert dsn
    assert fails("tail", "--partner", "nobody")[0] == 1
    assert fails("tail", "--after", "evt_x")[0] == 2
    assert fails("deliveries", "--subscription", "7")[0] == 2
    assert fails("deliveries", "--subscription", "sub_99")[0] == 1
    assert fails("redeliver", "sub_1")[0] == 2
    assert fails("redeliver", "sub_1", "--parked", "--event", "evt_1")[0] == 2
    assert fails("redeliver", "sub_1", "--from", "2026-10-01T00:00:00Z")[0] == 2
    assert (
        fails("redeliver", "sub_1", "--from", "2026-10-01T00:00:00", "--to", "2026-10-02T00:00:00Z")[0] == 2
    )
    assert fails("redeliver", "sub_99", "--parked")[0] == 1
    assert fails("redeliver", "sub_1", "--event", "evt_99")[0] == 1
    assert fails("redeliver", "sub_1", "--event", "evt_5") == (1, "There is no event evt_5."), (
        "another partner's"
    )


def test_deliveries_show_each_subscription_its_queue_and_its_attempts(dsn: str) -> None:
    async def fail_once(pool: "Pool[asyncpg.Record]") -> None:
        now = datetime.now(UTC)
        await pool.execute(
            "INSERT INTO delivery_attempts (subscription_no, event_no, attempt_no, attempted_at, took_ms,"
            " status, outcome, error) VALUES (1, 3, 1, $1, 12, 204, 'delivered', ''),"
            " (1, 4, 1, $2, 15000, NULL, 'failed', 'no answer within 15 s')",
            now - timedelta(minutes=1),
            now,
        )
        await pool.execute(
            "UPDATE deliveries SET attempt_count = 10, parked_at = now(), parked_because = 'gave up'"
        )
        await pool.execute(
            "UPDATE subscriptions SET failure_count = 7, held_until = now() + interval '1 minute'"
        )

    waiting = json.loads(run("deliveries", "--json"))
    assert [row["state"] for row in waiting["queue"]] == ["waiting"]
    on(dsn, fail_once)
    text = run("deliveries")
    for shown in (
        "sub_1",
        "bank-a",
        "https://receiver.example:8443",
        "gave up",
        "no answer within 15 s",
        "evt_4",
    ):
        assert shown in text
    found = json.loads(run("deliveries", "--subscription", "sub_1", "--json"))
    (summary,) = found["subscriptions"]
    assert summary["receiver"] == "https://receiver.example:8443"
    assert (summary["waiting_count"], summary["parked_count"], summary["failure_count"]) == (0, 1, 7)
    assert summary["held_until"] > datetime.now(UTC).isoformat()
    assert summary["last_delivered_at"] < datetime.now(UTC).isoformat()
    assert [(row["event_id"], row["attempt_count"]) for row in found["queue"]] == [("evt_4", 10)]
    assert [(row["event_id"], row["outcome"]) for row in found["attempts"]] == [
        ("evt_4", "failed"),
        ("evt_3", "delivered"),
    ]
    for state, queue, attempts in (
        ("parked", 1, 0),
        ("waiting", 0, 0),
        ("failed", 0, 1),
        ("delivered", 0, 1),
    ):
        found = json.loads(run("deliveries", "--state", state, "--json"))
        assert (len(found["queue"]), len(found["attempts"])) == (queue, attempts), state


def test_redeliver_queues_by_name_by_time_and_what_was_parked(dsn: str) -> None:
    async def queue(pool: "Pool[asyncpg.Record]") -> list[int]:
        rows = await pool.fetch("SELECT event_no FROM deliveries WHERE parked_at IS NULL ORDER BY event_no")
        return [row["event_no"] for row in rows]

    async def empty(pool: "Pool[asyncpg.Record]") -> None:
        await pool.execute("DELETE FROM deliveries")

    async def park(pool: "Pool[asyncpg.Record]") -> None:
        await pool.execute("UPDATE deliveries SET parked_at = now(), parked_because = 'gave up'")

    on(dsn, empty)
    assert "queued 2 for sub_1" in run("redeliver", "sub_1", "--event", "evt_1", "--event", "evt_4")
    assert on(dsn, queue) == [1, 4]
    on(dsn, park)
    assert json.loads(run("redeliver", "sub_1", "--parked", "--json")) == {
        "subscription_id": "sub_1",
        "queued": 2,
    }
    assert on(dsn, queue) == [1, 4]
    on(dsn, empty)
    now = datetime.now(UTC)
    span = ("--from", (now - timedelta(hours=1)).isoformat(), "--to", (now + timedelta(hours=1)).isoformat())
    assert "queued" in run("redeliver", "sub_1", *span)
    assert 4 in on(dsn, queue)
    on(dsn, empty)
    span = ("--from", "2020-01-01T00:00:00Z", "--to", "2020-01-02T00:00:00+08:00")
    assert "queued 0" in run("redeliver", "sub_1", *span)


def test_a_running_up_is_adopted_by_its_data_dir(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(database, put_in_place)
    monkeypatch.delenv("COUPONSVC_POSTGRES_DSN", raising=False)
    assert fails("tail", "--data-dir", str(tmp_path))[0] == 3
    (tmp_path / "master.key").write_text(MASTER_KEY)
    write_run_file(tmp_path, RunFile(url="http://127.0.0.1:1", redis_url="redis://x", postgres_dsn=database))
    with monkeypatch.context() as patch:
        for name in ("COUPONSVC_REDIS_URL", "COUPONSVC_MASTER_KEY", "COUPONSVC_POSTGRES_DSN"):
            patch.setenv(name, "x")  # so that what is adopted goes with the test
            patch.delenv(name)
        assert "evt_5" in run("tail", "--data-dir", str(tmp_path))


def test_tail_follows_what_comes_until_it_is_stopped(dsn: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "couponsvc", "events", "tail", "--follow", "--json", "--partner", "bank-a"],
        stdout=subprocess.PIPE,
        env={**os.environ, "COUPONSVC_POSTGRES_DSN": dsn, "PYTHONUNBUFFERED": "1"},
        text=True,
    )

    async def more(pool: "Pool[asyncpg.Record]") -> None:
        await issue(pool, "drop-a", 1, "bank-a")
        await number(pool)

    try:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["event_id"] for _ in range(3)]
        on(dsn, more)
        seen.append(json.loads(process.stdout.readline())["event_id"])
        assert seen == ["evt_1", "evt_2", "evt_4", "evt_6"]
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.closing(process.stdout or sys.stdout):
            assert process.wait(10) == 0
