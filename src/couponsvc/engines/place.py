"""Where an engine keeps its files: `<data-dir>/<name>`, reachable by its account.

Below a directory that `nobody` cannot enter (a home of mode 0700) root gets the
directory under `/var/lib/couponsvc` instead, with a link in the data directory.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Final

from couponsvc.engines.account import Account
from couponsvc.engines.errors import EngineError

ELSEWHERE: Final = Path("/var/lib/couponsvc")
"""Ours to make as root, and enterable by everybody on every Linux."""
PRIVATE: Final = 0o700
ENTERABLE: Final = 0o711
"""May be passed through by anybody, listed by the owner only."""


class DataDirLock:
    """Keeps a second `up` off a data directory. The kernel releases it when we die."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            EngineError: another process holds it.
        """
        while True:
            file = self._path.open("a", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise EngineError(
                    f"{self._path.parent} is in use by another couponsvc; stop it or choose another directory"
                ) from None
            # The holder before us removes the file while holding it: then ours is a ghost.
            if self._path.exists() and self._path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                self._file = file
                return
            file.close()

    def release(self) -> None:
        """Remove the lock file and let go."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def make_data_dir(data_dir: Path, account: Account) -> Path:
    """Make the data directory where it is missing; an existing one keeps its permissions.

    Raises:
        EngineError: it cannot be made.
    """
    path = data_dir.absolute()
    mode = ENTERABLE if account.switched else PRIVATE
    try:
        _make(path, mode)
    except OSError as error:
        raise EngineError(f"cannot make {path}: {error.strerror}; choose another --data-dir") from error
    return path


def _make(path: Path, mode: int) -> None:
    if path.is_dir():
        return
    _make(path.parent, 0o755 if mode == ENTERABLE else mode)
    path.mkdir()
    path.chmod(mode)  # whatever the umask says; the directory is ours, we just made it


def engine_home(data_dir: Path, name: str, account: Account) -> Path:
    """The directory of one engine, mode 0700, owned by its account; made where it is missing.

    Raises:
        EngineError: the account cannot get there and no other place is ours to make.
    """
    base = make_data_dir(data_dir, account)
    home = base / name
    if home.is_symlink() and not home.exists():
        home.unlink()  # what it led to was removed: start afresh
    if home.exists():
        return _checked(home, account)
    obstacle = account.obstacle(base)
    try:
        if obstacle is None:
            home.mkdir(mode=PRIVATE)
            account.own(home)
        else:
            real = _elsewhere(name, account)
            home.symlink_to(real)
    except OSError as error:
        raise EngineError(
            f"cannot make {home}: {error.strerror}"
            + (f" ({obstacle} cannot be entered by the engines' account `nobody`)" if obstacle else "")
            + "; choose another --data-dir"
        ) from error
    return home.resolve()


def _elsewhere(name: str, account: Account) -> Path:
    _make(ELSEWHERE, ENTERABLE)
    real = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=ELSEWHERE))
    account.own(real)
    return real


def _checked(home: Path, account: Account) -> Path:
    real = home.resolve()
    obstacle = account.obstacle(real.parent)
    if obstacle is not None:
        raise EngineError(
            f"{obstacle} cannot be entered by the engines' account `nobody`; choose another --data-dir"
        )
    owner = real.stat().st_uid
    if owner != account.uid:
        raise EngineError(
            f"{real} belongs to uid {owner}, the engines would run as uid {account.uid}; "
            "start as the user that made it, or choose another --data-dir"
        )
    return real


def copy_tree(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy `names` of `source` to `target`, readable by all, complete or not at all."""
    if target.is_dir():
        return
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in names:
        origin = source / name
        if origin.is_dir():
            shutil.copytree(origin, unfinished / name, symlinks=True)
        elif origin.exists():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, unfinished / name)
    for path in [unfinished, *unfinished.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    unfinished.rename(target)
