"""A directory for one run: data of engines, files of requests; gone afterwards."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def run_directory() -> Iterator[Path]:
    """A fresh directory that the engines' account can pass through.

    In the system's place for temporary files; if that is in memory (tmpfs), an fsync costs nothing
    and figures of level D are worth little: set TMPDIR.
    """
    path = Path(tempfile.mkdtemp(prefix="couponsvc-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
