"""On what a run was made: without it, a figure means nothing."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from couponsvc.engines.choose import Binary, find_postgres, find_redis

PROBE_TIMEOUT_S: Final = 10
TOOLS: Final = {"wrk": ["-v"], "node": ["--version"], "go": ["version"], "nginx": ["-v"]}
"""Programs whose version matters, and how they tell it."""
PACKAGES: Final = ("uvicorn", "uvloop", "httptools", "fastapi", "pydantic", "redis", "asyncpg")
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+")
_MODEL: Final = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)
_MEMORY: Final = re.compile(r"^MemTotal:\s*(\d+) kB$", re.MULTILINE)


def describe_machine(directory: Path) -> dict[str, Any]:
    """Processor, system, and the versions of everything that takes part.

    Args:
        directory: Where engines keep their data; what kind of file system that is decides what an
            fsync costs.
    """
    cpu = _MODEL.search(_read(Path("/proc/cpuinfo")))
    memory = _MEMORY.search(_read(Path("/proc/meminfo")))
    return {
        "cpu": cpu[1].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int(memory[1]) // 1024 if memory else 0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file_system": _file_system(directory),
        "python": platform.python_version(),
        "redis": _engine(find_redis()),
        "postgres": _engine(find_postgres()),
        "tools": {name: found for name in TOOLS if (found := _tool(name))},
        "packages": {name: version(name) for name in PACKAGES},
    }


def _engine(binary: Binary) -> str:
    return f"{binary.path.name} {binary.version} ({binary.source})"


def _tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if path is None:
        return ""
    done = subprocess.run(
        [path, *TOOLS[name]], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
    )
    found = _VERSION.search(done.stdout + done.stderr)
    return found[0] if found else ""


def _file_system(directory: Path) -> str:
    """Type of the file system that holds a directory: the longest mount point above it."""
    best, kind = "", ""
    for line in _read(Path("/proc/mounts")).splitlines():
        _, point, found, *_ = line.split()
        if directory.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
