"""A wall clock set off, for one process: libfaketime in its environment, where this machine has it.

Only `CLOCK_REALTIME` is set off: timeouts and intervals of a process run by the monotonic clock, which
nobody can set on a real machine either.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Final

PACKAGED: Final = "vendor/libfaketime/src/libfaketime.so.1"
"""Inside the package `libfaketime` (PyPI)."""
DEBIAN: Final = "*/faketime/libfaketime.so.1"
LEFT_BEHIND: Final = ("faketime_shm_{pid}", "sem.faketime_sem_{pid}")
"""What a killed process under the library leaves in /dev/shm."""
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where POSIX puts it


@lru_cache(maxsize=1)
def library() -> Path | None:
    """The library of this machine; None where there is none."""
    spec = importlib.util.find_spec("libfaketime")
    packaged = [Path(place) / PACKAGED for place in (spec and spec.submodule_search_locations) or ()]
    for path in [*packaged, *sorted(Path("/usr/lib").glob(DEBIAN))]:
        if path.is_file():
            return path
    return None


def offset_environment(offset_s: float) -> dict[str, str]:
    """What a process needs in its environment to believe that it is so much later (earlier: negative).

    Raises:
        RuntimeError: this machine has no libfaketime.
    """
    if not offset_s:
        return {}
    found = library()
    if found is None:
        raise RuntimeError("no libfaketime here: pip install libfaketime, or apt-get install libfaketime")
    return {
        "LD_PRELOAD": str(found),
        "FAKETIME": f"{offset_s:+f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def tidy_up(pid: int) -> None:
    """Remove what a killed process left behind."""
    for name in LEFT_BEHIND:
        (SHARED_MEMORY / name.format(pid=pid)).unlink(missing_ok=True)
