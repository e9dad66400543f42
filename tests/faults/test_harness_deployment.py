"""Each fault of a deployment really happens, lasts, and ends; and nothing is left of it afterwards."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from couponsvc.client import ApiClient, GrabClient
from couponsvc.support.redis_client import open_redis
from tests.faults.harness import clocks
from tests.faults.harness.deployment import Deployment, NotReady
from tests.faults.harness.proxy import Toxic, Way
from tests.servers import alive, children, short_directory, wait_until_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

PATIENCE_S = 15.0
ROOT = Path(__file__).parents[2]


async def until(claim: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < give_up_at, f"still not so after {PATIENCE_S:.0f} s: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Deployment]:
    with short_directory() as base:
        async with Deployment(
            base / "one", api_count=1, drain_count=1, reconcile_count=1, with_replica=True, with_receiver=True
        ) as deployment:
            yield deployment
            pids = [pid for name in deployment.members() if (pid := deployment.pid(name))]
            pids.append(deployment.proxies.pid)
            memory = shared_memory_of(deployment.pid("postgres") or 0)
            assert memory
            deployment.pause("postgres")
            deployment.pause("drain0")
        assert wait_until_gone(pids) == []
        assert [path for path in memory if Path(path).exists()] == []
        assert sorted(path.name for path in (base / "one").iterdir()) == ["kill-points", "logs", "metrics"]


def shared_memory_of(pid: int) -> set[str]:
    """Files in /dev/shm that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "/dev/shm/" in line}  # noqa: S108 - where POSIX puts it


@pytest.fixture
async def deployment(running: Deployment) -> AsyncIterator[Deployment]:
    yield running
    await running.heal()
    await running.until_ready()


@pytest.fixture(autouse=True)
def _no_process_left_behind(running: Deployment) -> Iterator[None]:
    """In place of everybody's: members that were started again are no leftovers."""
    before = set(children())
    yield
    members = {running.pid(name) for name in running.members()}
    left = wait_until_gone(set(children()) - before - members)
    assert not left


@contextlib.asynccontextmanager
async def redis_at(url: str) -> AsyncIterator[Redis]:
    redis = open_redis(url, socket_timeout_s=1.0)
    try:
        yield redis
    finally:
        await redis.aclose()


async def query(deployment: Deployment, statement: str, timeout_s: float = PATIENCE_S) -> object:
    async with asyncio.timeout(timeout_s):
        connection = await asyncpg.connect(deployment.postgres_dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            connection.terminate()


def run_python(*arguments: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_every_process_runs_in_a_group_of_its_own_and_the_check_finds_nothing(
    deployment: Deployment,
) -> None:
    names = ["postgres", "redis", "drain0", "reconcile0", "relay0", "api0", "replica", "receiver"]
    assert deployment.members() == names
    assert deployment.members("api") == ["api0"]
    pids = [deployment.pid(name) for name in names]
    assert [pid and os.getpgid(pid) for pid in pids] == pids
    assert all(path.exists() for path in deployment.log_paths())
    check = ("-m", "couponsvc", "check")
    done = await asyncio.to_thread(run_python, *check, environment=deployment.environment)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_receiver_is_told_of_vouchers_and_keeps_them_over_its_death(deployment: Deployment) -> None:
    await asyncio.to_thread(define_a_drop, deployment)
    async with GrabClient(deployment.url, deployment.keys["bank-a"]) as client, asyncio.timeout(PATIENCE_S):
        while not (await client.grab("told", "a-person", "a-number")).confirmed:
            await asyncio.sleep(0.05)  # the drop may not be open yet
    await until(deployment.heard, "the receiver heard of it")
    deployment.kill("receiver")
    await until(lambda: deployment.pid("receiver"), "the receiver is back")
    (heard,) = deployment.heard()
    assert heard.partner_id == "bank-a"
    assert b'"vch_' in heard.body


async def test_a_killed_process_comes_back_and_a_held_one_when_it_is_released(deployment: Deployment) -> None:
    before, restarts = deployment.pid("drain0"), deployment.restarts["drain0"]
    deployment.kill("drain0")
    assert deployment.pid("drain0") is None
    await until(lambda: deployment.pid("drain0"), "the drainer is back")
    assert deployment.pid("drain0") != before
    deployment.hold("drain0")
    deployment.kill("drain0")
    await asyncio.sleep(0.5)
    assert deployment.pid("drain0") is None
    deployment.release("drain0")
    await until(lambda: deployment.pid("drain0"), "the drainer is back")
    assert deployment.restarts["drain0"] == restarts + 2


async def test_a_paused_server_is_silent_with_all_its_processes_until_it_is_resumed(
    deployment: Deployment,
) -> None:
    connection = await asyncpg.connect(deployment.postgres_dsn)
    deployment.pause("postgres")
    with pytest.raises(TimeoutError):
        await connection.fetchval("SELECT 1", timeout=0.3)
    deployment.resume("postgres")
    assert await query(deployment, "SELECT 1") == 1
    connection.terminate()


async def test_a_line_between_two_processes_can_be_cut_and_the_service_says_so(
    deployment: Deployment,
) -> None:
    deployment.proxies.toxic("api-redis", Toxic(cut=Way.BOTH))
    with pytest.raises(NotReady):
        await stays_ready(deployment)
    deployment.proxies.heal("api-redis")
    await deployment.until_ready()


def define_a_drop(deployment: Deployment) -> None:
    now = datetime.now(UTC)
    drop = {
        "program_id": "fault",
        "template_id": "dining-20",
        "quantity": 10,
        "per_person_limit": 1,
        "opens_at": (now - timedelta(minutes=1)).isoformat(),
        "closes_at": (now + timedelta(hours=1)).isoformat(),
        "partners": ["bank-a"],
    }
    template = {"name": "T", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48}
    with ApiClient(deployment.url, deployment.operator_token) as operator:
        operator.put("/v1/programs/fault", {"name": "Fault", "region": "370200"})
        operator.put("/v1/programs/fault/templates/dining-20", template)
        operator.put("/v1/drops/told", drop)


async def stays_ready(deployment: Deployment) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await deployment.until_ready(0)


async def test_redis_restarts_with_its_data_or_without_or_is_wiped(deployment: Deployment) -> None:
    async with redis_at(deployment.redis_url) as redis:
        await redis.set("kept", 1)
        await deployment.redis_restart(keep_data=True)
        assert await redis_says(redis, "kept") == b"1"
        await deployment.redis_restart(keep_data=False)
        assert await redis_says(redis, "kept") is None
        await redis.set("kept", 2)
        run_id = (await redis.info("server"))["run_id"]
        await deployment.redis_wipe()
        assert await redis.get("kept") is None
        assert (await redis.info("server"))["run_id"] == run_id


def answers(redis_url: str) -> bool:
    """Whether a server takes connections."""
    parts = urlsplit(redis_url)
    with (
        contextlib.suppress(OSError),
        socket.create_connection((parts.hostname, parts.port), 1) as connection,
    ):
        connection.sendall(b"QUIT\r\n")
        return bool(connection.recv(64))
    return False


async def redis_says(redis: Redis, key: str) -> object:
    """On the server that runs now: the pool may hold a connection to the one before."""
    await redis.connection_pool.disconnect()
    return await redis.get(key)


async def test_redis_comes_back_as_it_was_when_it_was_copied(deployment: Deployment) -> None:
    async with redis_at(deployment.redis_url) as redis:
        await redis.set("age", "old")
        await deployment.redis_copy_data()
        await redis.set("age", "new")
        await deployment.redis_restore_copy()
        assert await redis_says(redis, "age") == b"old"


async def test_redis_forgets_its_scripts(deployment: Deployment) -> None:
    async with redis_at(deployment.redis_url) as redis:
        digest = await redis.script_load("return 1")
        assert await redis.script_exists(digest) == [True]
        await deployment.redis_script_flush()
        assert await redis.script_exists(digest) == [False]


async def test_redis_without_memory_refuses_writes_until_it_has_some(deployment: Deployment) -> None:
    async with redis_at(deployment.redis_url) as redis:
        await deployment.redis_out_of_memory(on=True)
        with pytest.raises(OutOfMemoryError):
            await redis.set("more", 1)
        await deployment.redis_out_of_memory(on=False)
        await redis.set("more", 1)


async def write_on(redis: Redis) -> None:
    """A process that has just started takes a moment to feel its limit."""
    for _ in range(1_000):
        await redis.set("more", "x" * 10_000)


async def test_redis_with_a_full_disk_ends_at_each_write_and_keeps_what_it_had(
    deployment: Deployment,
) -> None:
    async with redis_at(deployment.redis_url) as redis:
        await redis.set("kept", 1)
        await deployment.redis_disk_full(on=True)
        for _ in range(2):  # the process that was started again has no room either
            server = deployment.pid("redis")
            with pytest.raises(RedisError):
                await write_on(redis)
            await until(lambda pid=server: deployment.pid("redis") not in {pid, None}, "Redis is back")  # type: ignore[misc]
            await until(lambda: answers(deployment.redis_url), "it answers")
        await deployment.redis_disk_full(on=False)
        await redis.connection_pool.disconnect()
        await redis.set("more", 1)
        assert await redis.mget("kept", "more") == [b"1", b"1"]


async def test_lost_confirmations_are_subscriptions_that_end(deployment: Deployment) -> None:
    async with redis_at(deployment.redis_url) as redis:
        subscriber = redis.pubsub()
        await subscriber.subscribe("news")
        await subscriber.get_message(timeout=1)
        await deployment.lose_confirmations()
        with pytest.raises(RedisError):
            await subscriber.get_message(timeout=1)
        await subscriber.aclose()  # type: ignore[no-untyped-call]


async def test_postgres_stopped_hard_stays_down_until_it_is_started_and_has_every_commit(
    deployment: Deployment,
) -> None:
    await query(deployment, "CREATE TABLE committed AS SELECT 7 AS seven")
    await deployment.postgres_stop_hard()
    await asyncio.sleep(0.5)
    with pytest.raises(OSError, match="Connect"):
        await query(deployment, "SELECT 1")
    await deployment.postgres_start()
    assert await query(deployment, "SELECT seven FROM committed") == 7
    await query(deployment, "DROP TABLE committed")


async def test_postgres_without_room_for_tables_refuses_rows_and_goes_on(deployment: Deployment) -> None:
    await query(deployment, "CREATE TABLE long AS SELECT repeat('x', 1000) FROM generate_series(1, 1200)")
    server = deployment.pid("postgres")
    await deployment.postgres_disk_full(on=True)
    more = "INSERT INTO long SELECT repeat('x', 1000) FROM generate_series(1, 100)"
    with pytest.raises(asyncpg.PostgresError, match="could not extend file"):
        await query(deployment, more)
    await query(deployment, "CREATE TABLE short AS SELECT 1")
    await deployment.postgres_disk_full(on=False)
    await query(deployment, more)
    await query(deployment, "DROP TABLE long, short")
    assert deployment.pid("postgres") == server


async def test_postgres_without_room_for_its_log_is_away_until_it_has_some(deployment: Deployment) -> None:
    await deployment.postgres_disk_full(on=True, spare_log=False)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await query(deployment, "CREATE TABLE long AS SELECT repeat('x', 1000) FROM generate_series(1, 1200)")
    await deployment.postgres_disk_full(on=False)
    await deployment.heal()
    assert await query(deployment, "SELECT count(*) FROM pg_class WHERE relname = 'long'") == 0


async def test_a_stale_replica_lacks_the_last_writes_and_the_old_primary_still_has_them(
    deployment: Deployment,
) -> None:
    old_primary, old_url = deployment.primary, deployment.redis_url
    async with redis_at(old_url) as old:
        await old.set("before", 1)
        await deployment.until_replicated()
        deployment.cut_replication()
        await old.set("after", 1)  # acknowledged, and lost
        await deployment.failover(stale_s=0)
        assert deployment.primary != old_primary
        async with redis_at(deployment.redis_url) as promoted:
            assert await promoted.mget("before", "after") == [b"1", None]
            assert (await promoted.info("replication"))["role"] == "master"
            await deployment.until_ready()  # the reconciler has checked it
            await deployment.fail_back()
            assert deployment.redis_url == old_url
            assert await old.mget("before", "after") == [b"1", b"1"]
            await deployment.rejoin()
            assert await promoted.get("after") == b"1"


async def test_with_some_kinds_led_elsewhere_two_servers_are_written_to_at_once(
    deployment: Deployment,
) -> None:
    primary = deployment.primary
    await deployment.failover(stale_s=0, kinds=["api"])
    assert deployment.primary == primary
    for name in ("redis", "replica"):
        async with asyncio.timeout(PATIENCE_S), redis_at(deployment.redis_url_of(name)) as redis:
            while len(await redis.client_list()) == 1:  # nobody but us
                await asyncio.sleep(0.02)


@pytest.mark.skipif(clocks.library() is None, reason="this machine has no libfaketime")
async def test_a_process_can_have_a_wrong_wall_clock_and_a_right_monotonic_one(
    deployment: Deployment,
) -> None:
    await deployment.clock_offset("api0", 3_600)
    await deployment.until_ready()
    preloaded = Path(f"/proc/{deployment.pid('api0')}/maps").read_text()
    assert "libfaketime" in preloaded
    tell = ("-c", "import time; print(time.time(), time.monotonic())")
    environment = {**deployment.environment, **clocks.offset_environment(3_600)}
    asked = await asyncio.to_thread(run_python, *tell, environment=environment)
    wall, monotonic = map(float, asked.stdout.split())
    assert 3_500 < wall - time.time() < 3_700
    assert abs(monotonic - time.monotonic()) < 10


STARTS_ONE = """
import asyncio, sys
from pathlib import Path
from tests.faults.harness.deployment import Deployment

async def main():
    counts = {"api_count": 1, "drain_count": 0, "relay_count": 0, "reconcile_count": 1}
    async with Deployment(Path(sys.argv[1]), **counts) as one:
        print(*[one.pid(name) for name in one.members()], one.proxies.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def start_one(base: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", STARTS_ONE, str(base)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


async def test_a_deployment_does_not_outlive_the_process_that_started_it() -> None:
    with short_directory() as base:
        one = await asyncio.to_thread(start_one, base / "one")
        assert one.stdout is not None
        with one, one.stdout as told:
            pids = [int(pid) for pid in (await asyncio.to_thread(told.readline)).split()]
            assert len(pids) == 5
            assert all(alive(pid) for pid in pids)
            one.kill()
        assert await asyncio.to_thread(wait_until_gone, pids, patience_s=10) == []
