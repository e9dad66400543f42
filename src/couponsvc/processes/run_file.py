"""`<data-dir>/run.json`: how tools find a running `up`. Mode 0600, gone when it stops."""

import os
from pathlib import Path
from typing import Final

import msgspec

from couponsvc.engines.account import Account
from couponsvc.engines.engine import write_private
from couponsvc.processes.running import EXIT_UNREACHABLE, ProcessFailed

FILE_NAME: Final = "run.json"
MASTER_KEY_FILE_NAME: Final = "master.key"
ADOPTED: Final = ("COUPONSVC_REDIS_URL", "COUPONSVC_POSTGRES_DSN", "COUPONSVC_MASTER_KEY")
"""What a tool takes over from a running `up`, each unless its environment names it."""


class RunFile(msgspec.Struct, frozen=True):
    """Where a running `up` can be reached. Holds passwords: never print it."""

    url: str
    redis_url: str
    postgres_dsn: str


def write_run_file(data_dir: Path, content: RunFile) -> None:
    """Write it, complete or not at all, for our own account only."""
    own = Account(os.geteuid(), os.getegid(), switched=False)
    write_private(data_dir / FILE_NAME, msgspec.json.encode(content).decode() + "\n", own)


def remove_run_file(data_dir: Path) -> None:
    """Say that nothing runs any more."""
    (data_dir / FILE_NAME).unlink(missing_ok=True)


def read_run_file(data_dir: Path) -> RunFile:
    """What the `up` that runs on `data_dir` wrote.

    Raises:
        ProcessFailed: nothing runs there, or the file is not ours to read.
    """
    path = data_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunFile)
    except FileNotFoundError:
        raise ProcessFailed(
            f"no couponsvc runs on {data_dir}: start `couponsvc up`, or name its --data-dir", EXIT_UNREACHABLE
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ProcessFailed(f"cannot read {path}: {error}", EXIT_UNREACHABLE) from error


def adopt_running(data_dir: Path) -> None:
    """Give this process the addresses of the `up` on `data_dir` where its environment names none.

    Raises:
        ProcessFailed: something is missing from the environment and nothing runs there.
    """
    if all(name in os.environ for name in ADOPTED):
        return
    run = read_run_file(data_dir)
    try:
        master_key = (data_dir / MASTER_KEY_FILE_NAME).read_text("ascii").strip()
    except OSError as error:
        raise ProcessFailed(
            f"cannot read {data_dir / MASTER_KEY_FILE_NAME}: {error}", EXIT_UNREACHABLE
        ) from None
    for name, value in zip(ADOPTED, (run.redis_url, run.postgres_dsn, master_key), strict=True):
        os.environ.setdefault(name, value)
