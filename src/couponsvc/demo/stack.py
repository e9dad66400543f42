"""The service as `couponsvc up` runs it, as a subprocess on a directory that goes away with us."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import msgspec

from couponsvc.client import Credentials, read_credentials
from couponsvc.processes import run_file

START_PATIENCE_S: Final = 90.0
"""First start on a slow disk: unpacking, initdb, migrations."""
STOP_PATIENCE_S: Final = 30.0
"""Longer than `up` itself gives its children; then SIGKILL."""
_POLL_S: Final = 0.05
_FOREIGN: Final = ("COUPONSVC_REDIS_URL", "COUPONSVC_POSTGRES_DSN", "COUPONSVC_MASTER_KEY")
"""Never run a rush on servers that somebody else keeps data in."""
_LOG_TAIL_LINES: Final = 15


class StackFailed(Exception):
    """The service did not start or did not stay; the message ends with what it said last."""


class Stack:
    """A running service; a context that stops it and removes what it kept.

    Args:
        data_dir: Kept afterwards; None makes a temporary one that is removed.
        workers: API processes.
        environment: Settings of the service beside those of this process.
    """

    def __init__(
        self, data_dir: Path | None, workers: int, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._workers: Final = workers
        self._environment: Final = environment
        self.temporary: Final = Path(tempfile.mkdtemp(prefix="couponsvc-demo-"))
        self.temporary.chmod(0o711)  # as root, the engines' account must get through to its own part
        self.data_dir: Final = data_dir.absolute() if data_dir else self.temporary / "data"
        self.records_dir: Final = self.temporary / "records"
        self.records_dir.mkdir(mode=0o700)
        self._log_path: Final = self.temporary / "up.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.run: run_file.RunFile
        self.credentials: Credentials

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

    @property
    def pid(self) -> int:
        """Process id of `couponsvc up`."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    def log_tail(self) -> str:
        """What the service said last."""
        try:
            lines = self._log_path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def ensure_running(self) -> None:
        """Check that it still runs.

        Raises:
            StackFailed: it ended.
        """
        if self._process is not None and (code := self._process.poll()) is not None:
            raise StackFailed(f"couponsvc up ended with exit code {code}:\n{self.log_tail()}")

    def _start(self) -> None:
        command = [sys.executable, "-m", "couponsvc", "up", "--port", "0"]
        command += ["--data-dir", str(self.data_dir), "--workers", str(self._workers)]
        environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        environment.update(self._environment)
        environment.setdefault("COUPONSVC_LOG_LEVEL", "warning")
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
            )
        path = self.data_dir / run_file.FILE_NAME
        path.unlink(missing_ok=True)  # of a run that was killed
        deadline = time.monotonic() + START_PATIENCE_S
        while not path.exists():
            self.ensure_running()
            if time.monotonic() > deadline:
                raise StackFailed(
                    f"couponsvc up did not start in {START_PATIENCE_S:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)
        self.run = msgspec.json.decode(path.read_bytes(), type=run_file.RunFile)
        self.credentials = read_credentials(self.data_dir)

    def close(self) -> None:
        """Stop the service and remove what was temporary. May be called again."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.data_dir.is_relative_to(self.temporary) and self.data_dir.is_dir():
            for link in self.data_dir.iterdir():
                if link.is_symlink():  # an engine's home that had to live elsewhere
                    shutil.rmtree(link.resolve(), ignore_errors=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
