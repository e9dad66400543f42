"""What a run tells: one line of JSON, and, where something is wrong, a directory with everything."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tests.faults.harness.checker import Report, judge
from tests.faults.harness.final import FinalState
from tests.faults.harness.history import History
from tests.faults.harness.plan import Plan

FINAL_NAME: Final = "final.msgpack"
HISTORY_NAME: Final = "history.gz"


class Result(msgspec.Struct, kw_only=True):
    """One line of JSON."""

    seed: int
    seconds: float
    violations: list[str]
    """Promises that were broken, with a few examples each; also what made a run impossible."""
    crowd: str = ""
    """Options of the command that made it another one than usual."""
    confirmed_vouchers: int = 0
    calls: int = 0
    answers: dict[str, int] = {}
    """By status and code."""
    faults: dict[str, int] = {}
    """Carried out, by kind."""
    fault_failures: list[str] = []
    """Not carried out, and why."""
    kill_points_hit: list[str] = []
    restarts: dict[str, int] = {}
    rebuilds: int = 0
    """Epochs that were raised, over all drops."""
    unchecked_windows: int = 0
    """Times when a server was not checked yet while persons pressed."""
    unchecked_answers: dict[str, int] = {}
    """What grabs were answered in them, by status and code: never anything that only the gate can know."""
    deliveries: int = 0
    """Of events, to the partners' receivers."""
    heal_s: float = 0.0
    """From the end of the plan until the last fault was undone and the servers ran."""
    ready_after_heal_s: float = 0.0
    sold_out_after_heal_s: dict[str, float] = {}
    """By role; -1: not within patience."""
    checked: dict[str, int] = {}
    """Cases by rule."""
    took_s: dict[str, float] = {}

    def text(self) -> str:
        """JSON on one line."""
        return msgspec.json.encode(self).decode()


class Found(NamedTuple):
    """Everything that one run left."""

    result: Result
    history: History
    report: Report | None = None
    final: FinalState | None = None


def told(report: Report) -> list[str]:
    """A report's violations, one line each."""
    return [
        f"{violation.rule} ({report.broken[violation.rule]} times): {violation.says}"
        for violation in report.violations
    ]


def keep(directory: Path, logs: Iterable[Path], plan: Plan, found: Found) -> None:
    """Leave everything that is needed to find out what happened, and to judge it again."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "plan.json").write_text(plan.text())
    (directory / "result.json").write_text(found.result.text())
    found.history.save(directory / HISTORY_NAME)
    if found.final is not None:
        (directory / FINAL_NAME).write_bytes(msgspec.msgpack.encode(found.final))
    if found.report is not None:
        (directory / "report.txt").write_text(found.report.text())
    for path in logs:
        if path.exists():
            shutil.copyfile(path, directory / f"{path.parent.name}-{path.name}")  # both Redis say redis.log


def judge_again(directory: Path) -> Report:
    """Judge what a run has left once more.

    Raises:
        OSError, msgspec.MsgspecError: nothing is there, or not what a run leaves.
    """
    final = msgspec.msgpack.decode((directory / FINAL_NAME).read_bytes(), type=FinalState)
    return judge(History.load(directory / HISTORY_NAME), final)
