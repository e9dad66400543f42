"""CPU seconds by process, from /proc: what a confirmed voucher costs where. Linux only."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
POSTGRES: Final = "postgres"
_COMMANDS: Final = ("api", "drain", "relay", "reconcile", "up")


class _Process(NamedTuple):
    pid: int
    parent: int
    own_s: float
    ended_children_s: float
    """Of children that it has waited for."""


def cpu_seconds(root_pid: int) -> Mapping[str, float]:
    """CPU seconds so far of a process and all below it, by what they are.

    Empty where there is no /proc (macOS).
    """
    processes = {process.pid: process for process in _processes()}
    seconds: dict[str, float] = {}
    for pid, process in processes.items():
        if _below(pid, root_pid, processes):
            name = _name(pid)
            # A backend that ended counts on in its postmaster; a restarted process of ours does not in `up`.
            ended_s = process.ended_children_s if name == POSTGRES else 0.0
            seconds[name] = seconds.get(name, 0.0) + process.own_s + ended_s
    return seconds


def pids_of(root_pid: int, name: str) -> list[int]:
    """Processes below one that run this command of ours; none where there is no /proc."""
    processes = {process.pid: process for process in _processes()}
    return [pid for pid in processes if _below(pid, root_pid, processes) and _name(pid) == name]


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Seconds between two readings, largest first."""
    names = {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in after.items()}
    return dict(sorted(names.items(), key=lambda item: -item[1]))


def _processes() -> Iterator[_Process]:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        # Fields of proc(5), counted from the one after the name: state, ppid, … utime is the 12th.
        user, system, ended_user, ended_system = map(int, fields[11:15])
        yield _Process(
            int(path.parent.name),
            int(fields[1]),
            (user + system) / ticks_per_s,
            (ended_user + ended_system) / ticks_per_s,
        )


def _below(pid: int, root_pid: int, processes: Mapping[int, _Process]) -> bool:
    while pid != root_pid:
        process = processes.get(pid)
        if process is None or process.parent == 0:
            return False
        pid = process.parent
    return True


def _name(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "other"
    program = Path(words[0].split(" ")[0]).name
    if "valkey" in program or "redis" in program:
        return "redis"
    if "postgres" in program:
        return POSTGRES
    return next((command for command in _COMMANDS if command in words[1:5]), "other")
