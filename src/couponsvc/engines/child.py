"""A child process that cannot outlive us, in a process group of its own."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
LOG_MAX_BYTES: Final = 10 * 1024 * 1024
"""A log this long starts anew at the next start of its process."""
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def dies_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` after which the kernel sends `death_signal` when our main thread ends.

    Linux only; elsewhere None. `subprocess` calls it after it has changed the uid, so
    the change does not clear it. Spawn from the main thread: the kernel watches that thread.
    """
    if _LIBC is None:
        return None
    parent = os.getpid()

    def arm() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # the parent died before the kernel was told
            os._exit(1)

    return arm


class Child:
    """One running child. Not restarted here: `running` tells, the owner decides."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        death_signal: signal.Signals,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **popen_options: Any,  # noqa: ANN401 - passed on to Popen unread
    ) -> None:
        """Start it, with output appended to `log` where one is given.

        Raises:
            OSError: the command cannot be executed.
        """
        with contextlib.ExitStack() as stack:
            output = None
            if log is not None:
                long = log.exists() and log.stat().st_size > LOG_MAX_BYTES
                output = stack.enter_context(log.open("wb" if long else "ab"))
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, who stop it in order
                preexec_fn=dies_with_parent(death_signal),  # noqa: PLW1509 - one system call, before exec
                **popen_options,
            )
        self.pid: Final = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative signal number where one killed it."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it runs; a dead one is reaped by asking."""
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self._process.send_signal(number)  # does nothing once it was reaped

    def kill_group(self) -> None:
        """SIGKILL the process and every process of its group, and reap it."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
