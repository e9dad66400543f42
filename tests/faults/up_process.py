"""`couponsvc up` as a real process: started, watched, stopped; and its whole family of processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.servers import alive, wait_until_gone

PATIENCE_S = 60.0


def couponsvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, with nothing of the service in the environment."""
    return subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "couponsvc", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=clean_environment(),
    )


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("COUPONSVC_")}


def wait_until(claim: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < give_up_at, f"still not so after {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.05)


class UpProcess:
    """One `couponsvc up`."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(f"{data_dir.name}.up.log")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "couponsvc", "up", "--data-dir", data_dir, "--port", "0", *arguments],
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")

    def wait_until_listening(self) -> "UpProcess":
        def listening() -> bool:
            assert self.process.poll() is None, self.log()
            return "listening on http://" in self.log()

        wait_until(listening, "up listens")
        return self

    def run_file(self) -> dict[str, Any]:
        content: dict[str, Any] = msgspec.json.decode((self.data_dir / "run.json").read_bytes())
        return content

    @property
    def port(self) -> int:
        return int(self.run_file()["url"].rsplit(":", 1)[1])

    def wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not self.ready():
            assert time.monotonic() < give_up_at, f"not ready; up said last:\n{self.log()[-4_000:]}"
            time.sleep(0.05)

    def ready(self) -> bool:
        """Whether `/readyz` answers 200 on a fresh connection."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def family(self) -> dict[int, str]:
        """Every living process below `up`, with what it is: `api`, `drain`, `postgres`, …"""
        parents = parents_of_all()
        found: dict[int, str] = {}
        generation = {self.process.pid}
        while generation:
            generation = {pid for pid, parent in parents.items() if parent in generation}
            found.update({pid: kind_of(pid) for pid in generation if alive(pid)})
        return found

    def pids(self, kind: str) -> set[int]:
        """Of what `up` started itself; Postgres' own children are not among them."""
        up = self.process.pid
        children = [pid for pid, parent in parents_of_all().items() if parent == up and alive(pid)]
        return {pid for pid in children if kind_of(pid) == kind}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, list[int]]:
        """Send a signal: its exit code, and which processes of its family are left."""
        family = list(self.family())
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S), wait_until_gone(family, patience_s=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
        self.log_path.unlink()


def parents_of_all() -> dict[int, int]:
    """Every process of the machine with its parent."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return parents


def kind_of(pid: int) -> str:
    """What a process of the family is."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    if command[1:3] == [b"-m", b"couponsvc"]:
        return command[3].decode()
    return Path(command[0].decode().split(":", maxsplit=1)[0].split(" ", maxsplit=1)[0]).name


@contextlib.contextmanager
def running(data_dir: Path, *arguments: str) -> Iterator[UpProcess]:
    """An `up` that listens; killed at the end unless it was stopped."""
    with UpProcess(data_dir, *arguments) as up:
        yield up.wait_until_listening()
