"""`couponsvc up` takes everything with it that it started, however it ends; only data stay."""

import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from couponsvc.engines.redis import EmbeddedRedis
from tests.faults.up_process import UpProcess, couponsvc, running, wait_until
from tests.servers import short_directory, wait_until_gone

pytestmark = pytest.mark.faults


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_leaves_no_process_no_lock_and_no_address(
    data_dir: Path, number: signal.Signals
) -> None:
    with running(data_dir, "--workers", "2") as up:
        assert sorted(kind for kind in up.family().values() if kind != "postgres") == sorted(
            ["api", "api", "drain", "reconcile", "relay", "valkey-server"]
        )
        assert up.pids("postgres")
        for name in ("credentials.json", "master.key", "run.json"):
            assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600
        assert up.stop(number) == (0, [])
        kept = {"credentials.json", "master.key", "metrics", "postgres", "postgres.log", "redis", "redis.log"}
        assert {path.name for path in data_dir.iterdir()} == kept


def test_data_and_credentials_survive_a_stop_and_a_kill_of_up(data_dir: Path) -> None:
    with running(data_dir) as up:
        credentials = (data_dir / "credentials.json").read_bytes()
        admitted = couponsvc("partner", "create", "bank-b", "--data-dir", str(data_dir))
        assert admitted.returncode == 0, admitted.stderr
        assert up.stop() == (0, [])
    with running(data_dir) as up:
        assert "schema is current" in up.log()
        assert "bank-b" in couponsvc("partner", "list", "--data-dir", str(data_dir)).stdout
        assert up.stop(signal.SIGKILL) == (-signal.SIGKILL, [])
    with running(data_dir) as up:
        assert "bank-b" in couponsvc("partner", "list", "--data-dir", str(data_dir)).stdout
        assert (data_dir / "credentials.json").read_bytes() == credentials
        assert up.stop() == (0, [])


def test_told_to_stop_while_it_starts_it_leaves_nothing_running(data_dir: Path) -> None:
    with UpProcess(data_dir) as up:
        wait_until(lambda: bool(up.pids("postgres")), "Postgres runs")
        code, left = up.stop()
        assert (code, left) == (0, [])
        assert not (data_dir / "lock").exists()
        assert "listening" not in up.log()


def test_a_second_up_on_the_same_directory_or_port_says_so_in_one_line(data_dir: Path) -> None:
    with running(data_dir) as up:
        same_directory = couponsvc("up", "--port", "0", "--data-dir", str(data_dir))
        same_port = couponsvc("up", "--port", str(up.port), "--data-dir", str(data_dir / "other"))
        for refused, words in (
            (same_directory, "is in use by another"),
            (same_port, "choose another --port"),
        ):
            assert refused.returncode == 3
            assert refused.stderr.count("\n") == 1
            assert words in refused.stderr
        assert up.ready()
        assert up.stop() == (0, [])


def test_what_it_is_given_and_cannot_reach_is_said_in_one_line_and_nothing_stays(data_dir: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        dsn = f"postgresql://u:hidden@127.0.0.1:{closed.getsockname()[1]}/x"
        refused = couponsvc("up", "--port", "0", "--data-dir", str(data_dir), "--postgres-dsn", dsn)
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
    assert "COUPONSVC_POSTGRES_DSN" in refused.stderr
    assert "hidden" not in refused.stderr + refused.stdout
    assert not (data_dir / "lock").exists()
    assert wait_until_gone(_on(data_dir)) == []


def test_a_redis_that_would_forget_is_refused_by_name_and_cure(data_dir: Path) -> None:
    redis = EmbeddedRedis(data_dir / "other", settings={"maxmemory-policy": "allkeys-lru"})
    redis.start()
    try:
        refused = couponsvc("up", "--port", "0", "--data-dir", str(data_dir), "--redis-url", redis.url)
    finally:
        redis.kill()
    assert refused.returncode == 3
    assert "has maxmemory-policy allkeys-lru: set it to noeviction" in refused.stderr
    assert not (data_dir / "lock").exists()


def _on(data_dir: Path) -> list[int]:
    """Processes that name the directory on their command line."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(data_dir) in path.read_bytes().decode("utf-8", "replace")
    ]
