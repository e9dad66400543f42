"""A deployment for one run: `couponsvc up` as a subprocess on a directory that goes away with it.

It is used from outside, like any other deployment: address, credentials, HTTP.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2
import msgspec

START_PATIENCE_S: Final = 90.0
"""First start on a slow disk: unpacking, initdb, migrations."""
STOP_PATIENCE_S: Final = 30.0
"""Longer than `up` gives its own processes; then SIGKILL."""
_POLL_S: Final = 0.1
_LOG_TAIL_LINES: Final = 15
_OWN_PREFIX: Final = "COUPONSVC_"
"""Nothing of the caller's environment may lead a load test to servers that keep somebody's data."""


class LocalFailed(Exception):
    """The deployment did not start; the message ends with what it said last."""


class _RunFile(msgspec.Struct):
    """The part of `<data-dir>/run.json` that says where `up` listens."""

    url: str


class LocalDeployment:
    """A running service; a context that stops it and removes what it kept.

    Args:
        workers: API processes.
    """

    def __init__(self, workers: int) -> None:
        self._workers: Final = workers
        self._temporary: Final = Path(tempfile.mkdtemp(prefix="couponsvc-load-"))
        self._temporary.chmod(0o711)  # as root, the engines' account must get through to its own part
        self._data_dir: Final = self._temporary / "data"
        self._log_path: Final = self._temporary / "up.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def credentials(self) -> Path:
        """Its credentials file."""
        return self._data_dir / "credentials.json"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        command = [sys.executable, "-m", "couponsvc", "up", "--port", "0"]
        command += ["--data-dir", str(self._data_dir), "--workers", str(self._workers)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_PREFIX)}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "COUPONSVC_LOG_LEVEL": "warning"},
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
            )
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._ready(self._process):
            if time.monotonic() > deadline:
                raise LocalFailed(
                    f"couponsvc up was not ready in {START_PATIENCE_S:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        if (code := process.poll()) is not None:
            raise LocalFailed(f"couponsvc up ended with exit code {code}:\n{self.log_tail()}")
        try:
            run = msgspec.json.decode((self._data_dir / "run.json").read_bytes(), type=_RunFile)
            self.url = run.url
            return httpx2.get(f"{run.url}/readyz", trust_env=False).is_success
        except (OSError, msgspec.MsgspecError, httpx2.TransportError):
            return False

    def log_tail(self) -> str:
        """What the service said last."""
        try:
            lines = self._log_path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def close(self) -> None:
        """Stop the service and remove what it kept. May be called again."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._data_dir.is_dir():
            for link in self._data_dir.iterdir():
                if link.is_symlink():  # an engine's home that had to live elsewhere
                    shutil.rmtree(link.resolve(), ignore_errors=True)
        shutil.rmtree(self._temporary, ignore_errors=True)
