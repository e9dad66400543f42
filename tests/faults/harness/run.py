"""One seed from beginning to end: deploy, press, break, heal, sell out, ask everything again, judge."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from couponsvc.client import ApiClient, ApiRefused, Unreachable
from tests.faults.harness.asking import Asker
from tests.faults.harness.changing import Changing
from tests.faults.harness.checker import Report, judge
from tests.faults.harness.crowd import FINAL_ROLES, Crowd
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.fault_kinds import Capabilities
from tests.faults.harness.final import FinalState, read_final
from tests.faults.harness.history import History
from tests.faults.harness.nemesis import Nemesis
from tests.faults.harness.numbers import NumberBook
from tests.faults.harness.plan import Plan, make_plan

START_PATIENCE_S: Final = 90.0
SELL_OUT_PATIENCE_S: Final = 45.0
"""The judge allows 10 s; longer here, so that it can tell what would have happened."""
SOLD_OUT_WITHIN_S: Final = 10.0
"""Of healing, while demand remains."""
QUIET_AFTER_S: Final = SOLD_OUT_WITHIN_S + 0.2
OPEN_PATIENCE_S: Final = 20.0
_POLL_S: Final = 0.05
FINAL_NAME: Final = "final.msgpack"
HISTORY_NAME: Final = "history.gz"


class Result(msgspec.Struct, kw_only=True):
    """One line of JSON."""

    seed: int
    seconds: float
    violations: list[str]
    confirmed_vouchers: int
    calls: int
    answers: dict[str, int]
    faults: dict[str, int]
    fault_failures: list[str]
    kill_points_hit: list[str]
    restarts: dict[str, int]
    rebuilds: int
    sold_out_after_heal_s: dict[str, float]
    unsettled_numbers: int
    checked: dict[str, int]
    took_s: dict[str, float]

    def text(self) -> str:
        """JSON on one line."""
        return msgspec.json.encode(self).decode()


class _Found(NamedTuple):
    result: Result
    report: Report
    history: History
    final: FinalState


class _Stopwatch:
    """How long each part of a run took."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self.took_s: Final[dict[str, float]] = {}

    def lap(self, name: str) -> None:
        now_s = time.monotonic()
        self.took_s[name] = round(now_s - self._since_s, 2)
        self._since_s = now_s


async def run_seed(
    seed: int, seconds: float, out_dir: Path, *, keep_all: bool = False, source: Path | None = None
) -> Result:
    """Run one schedule on a deployment of its own.

    Args:
        seed: Which schedule.
        seconds: How long faults are planted.
        out_dir: Where a run with violations leaves plan, history, final state and logs.
        keep_all: Leave them whatever was found.
        source: Run the service from there instead of `src`.
    """
    watch = _Stopwatch()
    base = Path(tempfile.mkdtemp(prefix=f"couponsvc-faults-{seed}-"))
    try:
        base.chmod(0o711)  # as root, the engines' account must get through to its own part
        async with Deployment(base, with_replica=True, source=source) as deployment:
            plan = make_plan(seed, seconds, Capabilities(clocks=deployment.can_fake_clock))
            print(plan.text(), flush=True)  # noqa: T201 - what repeats a run must be seen before it
            await deployment.until_ready(START_PATIENCE_S)
            watch.lap("start")
            found = await _run(deployment, plan, base, watch)
            if found.result.violations or keep_all:
                _keep(out_dir / f"seed-{seed}", deployment.log_paths(), plan, found)
        watch.lap("stop")
        return found.result
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def _run(deployment: Deployment, plan: Plan, base: Path, watch: _Stopwatch) -> _Found:
    history = History()
    nemesis = Nemesis(deployment, plan, history)
    changing = Changing(deployment.url, deployment.operator_token, history, plan)
    asker = Asker(deployment.url, deployment.keys, history)
    with NumberBook(base / "numbers.tsv") as book:
        try:
            crowd = Crowd(asker, plan, book)
            await changing.define(sorted(deployment.keys))
            await _until_open(deployment, plan)
            watch.lap("define")
            sold_out_s, unsettled_count = await _press_and_break(crowd, changing, nemesis, history, watch)
        finally:
            asker.close()
    final = await read_final(deployment, [drop.drop_id for drop in plan.drops])
    watch.lap("read final state")
    report = judge(history, final)
    watch.lap("judge")
    violations = [*_told(report), *_unsold(sold_out_s)]
    if unsettled_count:
        violations.append(f"settled: {unsettled_count} numbers have no answer after healing")
    result = Result(
        seed=plan.seed,
        seconds=plan.seconds,
        violations=violations,
        confirmed_vouchers=len(final.vouchers),
        calls=len(history.calls),
        answers=dict(asker.answers.most_common()),
        faults=dict(nemesis.counted),
        fault_failures=nemesis.failed,
        kill_points_hit=nemesis.hit_points,
        restarts=dict(deployment.restarts),
        rebuilds=sum(drop.epoch - 1 for drop in final.drops),
        sold_out_after_heal_s=sold_out_s,
        unsettled_numbers=unsettled_count,
        checked=dict(report.checked),
        took_s=watch.took_s,
    )
    return _Found(result, report, history, final)


async def _press_and_break(
    crowd: Crowd, changing: Changing, nemesis: Nemesis, history: History, watch: _Stopwatch
) -> tuple[dict[str, float], int]:
    """The run itself; returns when each contested drop was sold out, and what is unsettled after all."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crowd.press())
        changes = tasks.create_task(changing.carry_out(began_s))
        await nemesis.carry_out(began_s)
        await changes
        watch.lap("break and heal")
        crowd.stop()
        await changing.resume_everything()
        sold_out = [tasks.create_task(_sell_out(crowd, role, history.healed_ns)) for role in FINAL_ROLES]
    watch.lap("sell out")
    unsettled_count = await crowd.ask_everything_again()
    await asyncio.sleep(max(0.0, history.healed_ns / 1e9 + QUIET_AFTER_S - time.monotonic()))
    await crowd.try_once_more()
    watch.lap("ask again")
    return {role: task.result() for role, task in zip(FINAL_ROLES, sold_out, strict=True)}, unsettled_count


async def _sell_out(crowd: Crowd, role: str, healed_ns: int) -> float:
    """Seconds from healing until the drop was sold out for good; -1: not within patience."""
    try:
        await asyncio.wait_for(crowd.sell_out(role), SELL_OUT_PATIENCE_S)
    except TimeoutError:
        return -1.0
    return round((time.monotonic_ns() - healed_ns) / 1e9, 2)


async def _until_open(deployment: Deployment, plan: Plan) -> None:
    """Wait until every drop can be read as open.

    Raises:
        TimeoutError: one of them cannot.
    """
    deadline_s = time.monotonic() + OPEN_PATIENCE_S
    with ApiClient(deployment.url, deployment.operator_token) as api:
        for drop in plan.drops:
            while (state := await asyncio.to_thread(_state, api, drop.drop_id)) != "open":
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"{drop.drop_id} is {state} before anything was broken")
                await asyncio.sleep(_POLL_S)


def _state(api: ApiClient, drop_id: str) -> str:
    try:
        return str(api.get(f"/v1/drops/{drop_id}")["state"])
    except (ApiRefused, Unreachable) as error:
        return str(error)


def _told(report: Report) -> list[str]:
    return [
        f"{violation.rule} ({report.broken[violation.rule]} times): {violation.says}"
        for violation in report.violations
    ]


def _unsold(sold_out_s: dict[str, float]) -> list[str]:
    return [
        f"sold_out_in_time: {role} was sold out for good "
        + (
            f"{after_s:.1f} s after healing"
            if after_s >= 0
            else f"not even {SELL_OUT_PATIENCE_S:.0f} s later"
        )
        for role, after_s in sold_out_s.items()
        if not 0 <= after_s <= SOLD_OUT_WITHIN_S
    ]


def judge_again(directory: Path) -> Report:
    """Judge what a run has left once more.

    Raises:
        OSError, msgspec.MsgspecError: nothing is there, or not what a run leaves.
    """
    final = msgspec.msgpack.decode((directory / FINAL_NAME).read_bytes(), type=FinalState)
    return judge(History.load(directory / HISTORY_NAME), final)


def _keep(directory: Path, logs: list[Path], plan: Plan, found: _Found) -> None:
    """Leave everything that is needed to find out what happened, and to judge it again."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "plan.json").write_text(plan.text())
    (directory / "result.json").write_text(found.result.text())
    (directory / "report.txt").write_text(found.report.text())
    (directory / FINAL_NAME).write_bytes(msgspec.msgpack.encode(found.final))
    found.history.save(directory / HISTORY_NAME)
    for path in logs:
        shutil.copyfile(path, directory / path.name)
