"""An embedded Redis-compatible server that keeps every acknowledged write on disk."""

import signal
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from couponsvc.engines.choose import Binary, find_redis
from couponsvc.engines.engine import HOST, EmbeddedEngine, write_private
from couponsvc.engines.place import copy_tree

READY_TIMEOUT_S: Final = 0.5
SETTINGS: Final[Mapping[str, str]] = {
    "bind": HOST,
    "appendonly": "yes",
    "appendfsync": "always",  # a batch shares one fsync, so this costs little
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "yes",  # a kill in mid-write leaves half a command, which nobody was told of
    "maxmemory-policy": "noeviction",
    "save": '""',
    "daemonize": "no",
    "protected-mode": "yes",
}
"""What the gate relies on; `support/server_settings` refuses a server without the first of these."""


class EmbeddedRedis(EmbeddedEngine):
    """Valkey or Redis on 127.0.0.1 with a random password; data in `<data-dir>/redis`."""

    name: ClassVar[str] = "redis"
    title: ClassVar[str] = "Redis-compatible server"
    orderly_stop: ClassVar[signal.Signals] = signal.SIGTERM

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
        super().__init__(data_dir, binary or find_redis(), port=port, settings=settings)

    @property
    def url(self) -> str:
        """`redis://:<password>@127.0.0.1:<port>/0`."""
        return f"redis://:{self._password()}@{HOST}:{self.port}/0"

    def _executable(self, binary: Binary) -> Binary:
        if self.account.obstacle(binary.path) is None or binary.package_root is None:
            return binary
        target = self.home / f"binary-{binary.version}"
        copy_tree(binary.package_root, target, (binary.path.name,))
        return replace(binary, path=target / binary.path.name, package_root=None)

    def _prepare(self) -> None:
        self._password()

    def _command(self) -> list[str | Path]:
        settings = {
            **SETTINGS,
            "port": str(self.port),
            "dir": f'"{self.home}"',
            "requirepass": self._password(),
            **self._settings,
        }
        # In a file and not on the command line, where every account of the machine could read it.
        config = self.home / "server.conf"
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(config, text, self.account)
        return [self.binary.path, config]

    def _ready(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), READY_TIMEOUT_S) as connection:
                connection.sendall(f"AUTH {self._password()}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:  # noqa: PLR2004 - one line per command
                    received = connection.recv(4096)
                    if not received:
                        return False
                    answer += received
                return answer == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False

    def _may_pass(self, words: str) -> bool:
        return "in use" in words
