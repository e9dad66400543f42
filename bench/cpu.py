"""CPU by kind of process, from /proc: the figure that carries over from one machine to another.

Linux only. The kernel counts in ticks of 10 ms, so a reading is good to about 10 ms per process: half
a microsecond per request over a round of 20,000.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
US_PER_TICK: Final = 1_000_000 / os.sysconf("SC_CLK_TCK")


class ProcessGone(RuntimeError):
    """A process that is measured is no longer there: it died, or was started anew, in mid-run."""


class Process(NamedTuple):
    """One line of /proc/PID/stat, as far as CPU goes.

    Attributes:
        parent: Process id of its parent.
        cpu_us: User and system time of all its threads, ended ones included.
        ended_children_us: The same of children that it has waited for, and of theirs.
    """

    parent: int
    cpu_us: float
    ended_children_us: float


def read_processes() -> dict[int, Process]:
    """Every process of the machine by id."""
    found = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            text = path.read_text("utf-8", "replace")
        except OSError:
            continue  # it ended meanwhile
        found[int(path.parent.name)] = parse_stat(text)
    return found


def parse_stat(text: str) -> Process:
    """Read a line of proc(5): fields are counted after the name, which may contain anything."""
    fields = text.rpartition(")")[2].split()
    user, system, ended_user, ended_system = map(int, fields[11:15])
    return Process(int(fields[1]), (user + system) * US_PER_TICK, (ended_user + ended_system) * US_PER_TICK)


def sum_by_kind(processes: Mapping[int, Process], roots: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Microseconds so far by kind; a process counts for the nearest root at or above it.

    A child that ended counts on in its parent, so nothing gets lost between two readings, except by
    a process whose parent ended before it.

    Raises:
        ProcessGone: a root does not exist.
    """
    kind_of = {pid: kind for kind, pids in roots.items() for pid in pids}
    gone = [f"{kind} (process {pid})" for pid, kind in kind_of.items() if pid not in processes]
    if gone:
        raise ProcessGone(f"ended while it was measured: {', '.join(gone)}")
    used = dict.fromkeys(roots, 0.0)
    for pid, process in processes.items():
        kind = _nearest(pid, processes, kind_of)
        if kind is not None:
            used[kind] += process.cpu_us + process.ended_children_us
    return used


def _nearest(pid: int, processes: Mapping[int, Process], kind_of: Mapping[int, str]) -> str | None:
    while pid not in kind_of:
        process = processes.get(pid)
        if process is None or process.parent == 0:
            return None
        pid = process.parent
    return kind_of[pid]


def read_cpu(roots: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Microseconds so far by kind of process, now.

    Raises:
        ProcessGone: see `sum_by_kind`.
    """
    return sum_by_kind(read_processes(), roots)


def per_request(
    before: Mapping[str, float], after: Mapping[str, float], requests_count: int
) -> dict[str, float]:
    """Microseconds per request between two readings of the same roots."""
    return {kind: (after[kind] - before[kind]) / max(1, requests_count) for kind in before}
