"""Run a scenario with locust and judge it: against a deployment, or a local one that comes and goes.

The exit code is the verdict's: 0 kept, 1 broken, 2 usage, 3 the deployment cannot be reached.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtests.commands.judge import VERDICT_FILE
from loadtests.local import LocalDeployment, LocalFailed
from loadtests.plan import new_run_dir
from loadtests.scenario import ScenarioError, load_scenario, names

EXIT_BROKEN: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_INTERRUPTED: Final = 130
LOOPBACK: Final = "127.0.0.1"
LOCUSTFILE: Final = Path(__file__).resolve().parents[1] / "locustfile.py"
STOP_PATIENCE_S: Final = 30.0
"""Locust gives its workers a few seconds; then SIGKILL."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("scenario", help=f"one of {', '.join(names())}, or a file")
    parser.add_argument("--persons", type=int, default=0, help="how many come; 0: as the scenario says")
    parser.add_argument("--rate", type=float, default=0.0, help="persons per second instead (curve `even`)")
    parser.add_argument(
        "--host", default="", help="where the deployment answers; else a local one is started"
    )
    parser.add_argument("--credentials", type=Path, metavar="FILE", help="credentials.json of the deployment")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="drops that `prepare` has made")
    parser.add_argument("--processes", type=int, default=2, help="locust workers (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="API processes of a local deployment")
    parser.add_argument("--seed", type=int, help="of everything that chance decides")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where records and report go")
    parser.add_argument("--verbose", action="store_true", help="locust's own statistics, too")


def run(given: argparse.Namespace) -> int:
    """Start what is needed, run locust, stop everything; the exit code is the verdict's."""
    previous = signal.signal(signal.SIGTERM, _interrupt)  # so that what was started is stopped
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also for locust, if a shell ignored it for us
    try:
        with contextlib.ExitStack() as closing:
            host: str = given.host
            credentials: Path | None = given.credentials
            if not host:
                print("starting a local deployment …", flush=True)  # noqa: T201 - the command's output
                local = closing.enter_context(LocalDeployment(given.workers))
                host, credentials = local.url, local.credentials
            run_dir: Path = given.run_dir or new_run_dir(load_scenario(given.scenario).scenario)
            code = _locust(_command(given, host, credentials, run_dir))
            if code <= EXIT_BROKEN and not (run_dir / VERDICT_FILE).exists():
                return _fail("locust ended without a verdict; what it said is above", EXIT_UNREACHABLE)
            return code
    except ScenarioError as error:
        return _fail(str(error), EXIT_USAGE)
    except LocalFailed as error:
        return _fail(str(error), EXIT_UNREACHABLE)
    except KeyboardInterrupt:
        return _fail("interrupted; everything is stopped, nothing was judged", EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _command(given: argparse.Namespace, host: str, credentials: Path | None, run_dir: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", host]
    command += ["--scenario", given.scenario, "--persons", str(_persons_count(given))]
    if given.processes > 1:
        port = str(_free_port())  # only here: its workers are processes of this machine
        command += ["--processes", str(given.processes)]
        command += ["--master-bind-host", LOOPBACK, "--master-bind-port", port]
        command += ["--master-host", LOOPBACK, "--master-port", port]
    if not given.verbose:
        command += ["--quiet", "--only-summary", "--loglevel", "WARNING"]
    command += ["--run-dir", str(run_dir)]
    for name in ("seed", "plan"):
        value = getattr(given, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    if credentials is not None:
        command += ["--credentials", str(credentials)]
    return command


def _free_port() -> int:
    """A port that was free a moment ago; locust cannot tell its workers one that it found itself."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _persons_count(given: argparse.Namespace) -> int:
    scenario = load_scenario(given.scenario)
    rate: float = given.rate
    persons_count: int = given.persons
    if not rate:
        return persons_count
    if scenario.arrival.curve != "even":
        raise ScenarioError(
            f"--rate needs the curve `even`; {scenario.scenario} has {scenario.arrival.curve}"
        )
    return max(1, round(rate * scenario.arrival.within_s))


def _locust(command: list[str]) -> int:
    """Run it to its end; when we are interrupted, it closes its books and ends its workers first.

    In a session of its own: Ctrl-C would reach master and workers at once, in no order.
    """
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
        command, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # on SIGTERM a headless locust would die without a word
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers of a master that had no time for them
        process.wait()
        raise


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _fail(says: str, code: int) -> int:
    print(f"loadtests: run: {says}", file=sys.stderr)  # noqa: T201 - the command's error
    return code
