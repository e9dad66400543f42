"""Named places in our own code where a fault test may end, pause or break the process.

A fault that comes at a random moment hits the narrow windows that matter once in a thousand runs. A
kill point hits its window every time, and leaves a proof that it did.

They are armed by the environment alone: `COUPONSVC_KILL_POINTS_DIR` names a directory. A process that
passes the point `drain.after_commit` looks there for a file of that name; whoever renames it first
to `drain.after_commit.hit` carries out the order in it: `kill` (SIGKILL to itself), `pause` (SIGSTOP to
itself, somebody else must continue it) or `raise` (`KillPointReached`). So an order is carried out
once, by one process. Without the variable, which is read once, passing a point calls an empty
function: some 30 ns, per batch and never per grab.
"""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog

VARIABLE: Final = "COUPONSVC_KILL_POINTS_DIR"
HIT_SUFFIX: Final = ".hit"
KILL: Final = "kill"
PAUSE: Final = "pause"
RAISE: Final = "raise"
_ORDERS: Final = frozenset({KILL, PAUSE, RAISE})

NAMES: Final[set[str]] = set()
"""Every point of the modules that are imported."""

_directory: Final = os.environ.get(VARIABLE)

log = structlog.get_logger("kill_points")


class KillPointReached(Exception):
    """Raised at a point by order of a fault test; nothing in our code may expect it by name."""


def kill_point(name: str) -> Callable[[], None]:
    """Declare a point; what is returned is called at the place that `name` describes.

    Raises (what is returned):
        KillPointReached: by order.
    """
    assert name not in NAMES, name  # noqa: S101 - two places of one name could not be told apart
    NAMES.add(name)
    return _pass if _directory is None else partial(_reach, Path(_directory) / name)


def _pass() -> None:
    """Nothing is armed."""


def _reach(order_path: Path) -> None:
    hit_path = order_path.with_name(order_path.name + HIT_SUFFIX)
    try:
        order = order_path.read_text("ascii").strip()
        if order not in _ORDERS:
            return  # it is being written
        order_path.rename(hit_path)  # of all processes one succeeds
    except FileNotFoundError:
        return
    log.warning("kill point reached", name=order_path.name, order=order)
    if order == RAISE:
        raise KillPointReached(order_path.name)
    os.kill(os.getpid(), signal.SIGKILL if order == KILL else signal.SIGSTOP)
