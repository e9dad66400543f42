"""What the processes of a deployment find around them."""

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from couponsvc.engines.engine import HOST

OURS: Final = "COUPONSVC_"


def surroundings(source: Path | None) -> dict[str, str]:
    """The environment of this process without any setting of the service.

    Args:
        source: Goes first on PYTHONPATH, where the package is found before the installed one.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    found.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once, not by each of some thousand processes
    if source is not None:
        before = found.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([str(source), *([before] if before else [])])
    return found


def moved_to(url: str, port: int) -> str:
    """The same URL on another port of this machine."""
    parts = urlsplit(url)
    account = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{account}@{HOST}:{port}"))
