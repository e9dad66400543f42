"""A full disk for a running server: a limit on how long its files may grow.

No small filesystem is mounted, which takes rights that a test seldom has. The kernel refuses a write that
would make a file longer than the limit (`EFBIG`), where a full disk refuses it with `ENOSPC`; what a server
does about it is the same, except for Redis: it does not ignore SIGXFSZ, so the refused write ends it, where
with `appendfsync always` a failed write makes it exit by itself.
"""

import resource
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

RESULT_TIMEOUT_S: Final = 5.0


def limit_files(pids: Iterable[int], max_bytes: int | None, popen_options: Mapping[str, Any]) -> None:
    """Limit the size of files of running processes; children that they start later inherit it.

    Args:
        pids: Of one account; those that have ended meanwhile are passed over.
        max_bytes: A longer file takes no more; None lifts the limit.
        popen_options: What makes a command run as that account: even root may set limits of another
            account's processes only with a capability that containers lack.

    Raises:
        subprocess.SubprocessError: the processes are of another account.
    """
    wanted = list(pids)

    def set_limits() -> None:
        for pid in wanted:
            try:
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if max_bytes is None else max_bytes, hard))
            except ProcessLookupError:
                continue

    # After the change of account and before the command, which has nothing to do.
    subprocess.run(
        ["/bin/true"],
        preexec_fn=set_limits,
        check=True,
        timeout=RESULT_TIMEOUT_S,
        cwd="/",
        **popen_options,
    )


def longest_bytes(directory: Path, pattern: str = "*") -> int:
    """Length of the longest file below a directory; files that go meanwhile do not count."""
    longest = 0
    for path in directory.rglob(pattern):
        try:
            longest = max(longest, path.stat().st_size)
        except FileNotFoundError:
            continue
    return longest
