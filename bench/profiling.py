"""`--profile`: where our Python processes spend a round, by py-spy."""

import subprocess
from pathlib import Path
from typing import Final

from bench.row import Row

KINDS: Final = ("api", "drain")
RATE_PER_S: Final = 500


class Profiler:
    """Starts py-spy on the first process of each of `KINDS`, one file each, in collapsed stacks.

    Rounds under it are not counted: it costs CPU of its own.

    Args:
        command: Path of py-spy.
        directory: Where `profile-<row>-<kind>.txt` go.
    """

    def __init__(self, command: str, directory: Path) -> None:
        self._command: Final = command
        self._directory: Final = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, row: Row, window_s: float) -> None:
        """Profile a row's processes for as long as the window."""
        for kind in KINDS:
            for pid in row.roots.get(kind, ())[:1]:
                path = self._directory / f"profile-{row.name}-{kind}.txt"
                command = [self._command, "record", "--nonblocking", "-f", "raw", "-o", str(path)]
                command += ["-r", str(RATE_PER_S), "-d", str(max(1, round(window_s))), "-p", str(pid)]
                spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                self._running.append(spy)

    def finish(self) -> None:
        """Wait until the files are written."""
        for spy in self._running:
            spy.wait()
        self._running.clear()
