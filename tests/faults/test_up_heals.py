"""`couponsvc up` starts again whatever of its own dies; afterwards the books agree."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.faults.up_process import UpProcess, couponsvc, running, wait_until
from tests.servers import short_directory

pytestmark = pytest.mark.faults

KINDS = ("api", "drain", "reconcile", "relay", "valkey-server", "postgres")


@pytest.fixture(scope="module")
def up() -> Iterator[UpProcess]:
    with short_directory() as data_dir, running(data_dir, "--workers", "2") as process:
        applied = couponsvc("apply", "examples/qingdao-2022.yaml", "--data-dir", str(data_dir))
        assert applied.returncode == 0, applied.stderr
        yield process
        assert process.stop() == (0, [])


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_it_runs_again_at_the_same_address_and_the_books_agree(up: UpProcess, kind: str) -> None:
    before, address = up.pids(kind), up.run_file()
    victim = min(before)
    kill(victim)
    wait_until(lambda: victim not in up.pids(kind) and len(up.pids(kind)) >= count_of(kind), f"{kind} again")
    up.wait_until_ready()
    assert up.run_file() == address
    checked = couponsvc("check", "--data-dir", str(up.data_dir))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def wait_for_another(up: UpProcess, kind: str, victim: int) -> None:
    wait_until(lambda: bool(up.pids(kind) - {victim}), f"{kind} runs again")


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def count_of(kind: str) -> int:
    return 2 if kind == "api" else 1


def test_a_postgres_that_dies_again_and_again_leaves_a_reconciler_that_still_opens_the_gate(
    up: UpProcess,
) -> None:
    for kind in ("postgres", "postgres", "postgres", "valkey-server"):
        victim = min(up.pids(kind))
        kill(victim)
        wait_for_another(up, kind, victim)
        up.wait_until_ready()


def test_killed_all_at_once_everything_comes_back(up: UpProcess) -> None:
    old = set(up.family())
    for pid in old:
        kill(pid)
    wait_until(lambda: all(len(up.pids(kind) - old) >= count_of(kind) for kind in KINDS), "all again")
    up.wait_until_ready()
    assert couponsvc("check", "--data-dir", str(up.data_dir)).returncode == 0
