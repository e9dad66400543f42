"""The sweep: every named point of our code, and what is promised when a process ends or stops right there.

Each point is armed in the middle of a rush, together with whatever makes our code pass it. A round counts
only if the point was really hit; then every promise is judged as after any other fault. `make sweep`
(COUPONSVC_FULL_SWEEP=1) kills, raises and pauses for ten seconds at every point; CI does so at some.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import pytest_asyncio
from redis import Redis

from couponsvc.client import PartnerClient
from couponsvc.processes.run_file import read_run_file
from couponsvc.support import kill_points
from couponsvc.support.ending import end_tasks
from tests.faults.rush import Outdone, Rush, Up, descendants, running_up
from tests.receivers import Receiver
from tests.servers import short_directory

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

QUANTITY: Final = 400
PERSONS: Final = 460
ARMED_AT_COUNT: Final = 40
"""Vouchers told before a point is armed."""
PAUSE_S: Final = 10.0
ROUND_PATIENCE_S: Final = 100.0
"""Below pytest's own limit, which would leave nothing to tell why."""
LOG_TAIL_LINES: Final = 80
HIT_PATIENCE_S: Final = 20.0
TOLD_PATIENCE_S: Final = 60.0
"""For a partner to hear of every voucher: that of a paused relay waits for the end of its lease."""

_numbers = count(1)


class Scene(NamedTuple):
    """What the rounds share."""

    up: Up
    points: Path
    receiver: Receiver


@pytest_asyncio.fixture(scope="module")
async def scene() -> AsyncIterator[Scene]:
    with short_directory() as base:
        points = base / "points"
        points.mkdir()
        environment = {kill_points.VARIABLE: str(points), "COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true"}
        options = ("--workers", "2")
        with listening_aside(Receiver()) as receiver:
            async with running_up(base / "data", *options, environment=environment) as up:
                partner = up.credentials["partner"]
                with PartnerClient(up.url, partner["key_id"], partner["secret"]) as client:
                    client.subscribe(receiver.url, ["couponsvc.voucher.issued.v1"])
                yield Scene(up, points, receiver)


@contextmanager
def listening_aside(receiver: Receiver) -> Iterator[Receiver]:
    """A receiver on a loop of its own: the relay keeps its connections from round to round."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        async with receiver.listening():
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield receiver
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


# --- what makes our code pass a point ----------------------------------------------------------------
def nothing(_: Scene, __: Rush) -> None:
    """The rush itself passes."""


def flush_redis(scene: Scene, _: Rush) -> None:
    """The same server without data: drift, to be rebuilt by the continuous look."""
    with Redis.from_url(redis_url(scene)) as redis:
        redis.flushall()


def restart_redis(scene: Scene, _: Rush) -> None:
    """The same data on a server that nobody knows."""
    scene.up.kill("redis")


def pause_and_resume(_: Scene, rush: Rush) -> None:
    """The operator's call may fail, and is repeated."""
    for step in ("pause", "resume"):
        rush.operate("post", f"/v1/drops/{rush.drop_id}/{step}", {})


def lower_and_raise(_: Scene, rush: Rush) -> None:
    """A lower quantity is taken from the gate before it is committed."""
    for quantity in (QUANTITY - 50, QUANTITY):
        definition = {**rush.definition, "quantity": quantity}
        with contextlib.suppress(Outdone):  # a paused lowering was given up, and more was issued meanwhile
            rush.operate("put", f"/v1/drops/{rush.drop_id}", definition)


def redis_url(scene: Scene) -> str:
    return read_run_file(scene.up.data_dir).redis_url


Trigger = Callable[[Scene, Rush], None]
TRIGGERS: Final[dict[str, Trigger]] = {
    "gate.before_decision": nothing,
    "gate.after_decision": nothing,
    "gate.before_answer": nothing,
    "drain.after_read": nothing,
    "drain.after_commit": nothing,
    "drain.after_report": nothing,
    "drain.after_acknowledgement": nothing,
    "rebuild.before_raise": flush_redis,
    "rebuild.after_raise": flush_redis,
    "rebuild.after_fence": flush_redis,
    "rebuild.in_load": flush_redis,
    "rebuild.before_publish": flush_redis,
    "rebuild.after_publish": flush_redis,
    "rebuild.after_unload": flush_redis,
    "bless.before_blessing": restart_redis,
    "bless.after_blessing": restart_redis,
    "relay.before_numbered": nothing,
    "relay.after_numbered": nothing,
    "relay.before_delivery": nothing,
    "relay.after_delivery": nothing,
    "relay.after_mark": nothing,
    "operate.after_change": pause_and_resume,
    "operate.after_taking": lower_and_raise,
}
MODES: Final = (kill_points.KILL, kill_points.RAISE, kill_points.PAUSE)
SMALL_SET: Final = (
    ("gate.after_decision", kill_points.KILL),
    ("gate.before_answer", kill_points.RAISE),
    ("drain.after_commit", kill_points.KILL),
    ("rebuild.after_raise", kill_points.KILL),
    ("rebuild.before_publish", kill_points.PAUSE),
    ("bless.before_blessing", kill_points.KILL),
    ("relay.after_delivery", kill_points.KILL),
    ("operate.after_change", kill_points.RAISE),
)
"""One of each step, in each of the three ways."""
ROUNDS: Final = (
    [(point, mode) for point in TRIGGERS for mode in MODES]
    if os.environ.get("COUPONSVC_FULL_SWEEP")
    else SMALL_SET
)


@pytest.mark.parametrize(("point", "mode"), ROUNDS)
async def test_at_this_point_nothing_is_lost_doubled_or_stranded(scene: Scene, point: str, mode: str) -> None:
    rush = Rush(scene.up, QUANTITY, PERSONS, drop_id=f"sweep-{next(_numbers)}")
    try:
        async with asyncio.timeout(ROUND_PATIENCE_S):
            await play(scene, rush, point, mode)
            await rush.judge()
            await until_told(scene.receiver, rush)
    except BaseException:
        log = scene.up.data_dir.with_name(f"{scene.up.data_dir.name}.log")
        told = log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        print(*rush.statuses.items(), *told, sep="\n")  # noqa: T201 - the log goes with the deployment
        raise


async def play(scene: Scene, rush: Rush, point: str, mode: str) -> None:
    """One round, until everybody has an answer."""
    await asyncio.to_thread(rush.define)
    by_operator = TRIGGERS[point] in {pause_and_resume, lower_and_raise}
    running = asyncio.create_task(rush.run(connections=2 if by_operator else 16))
    try:
        while len(rush.first_201) < ARMED_AT_COUNT:
            assert not running.done(), "the rush ended before the fault"
            await asyncio.sleep(0.002)
        (scene.points / point).write_text(mode)
        triggering = asyncio.create_task(asyncio.to_thread(TRIGGERS[point], scene, rush))
        await until_hit(scene, point)
        if mode == kill_points.PAUSE:
            await resume_after(scene, PAUSE_S)
        await triggering
        await running
        if by_operator:
            await rush.run(connections=16)  # who was told paused, or sold out of fewer, comes again
    finally:
        (scene.points / point).unlink(missing_ok=True)
        await end_tasks(running)


async def until_hit(scene: Scene, point: str) -> None:
    """Wait for the proof that a process obeyed, and take it away."""
    proof = scene.points / f"{point}{kill_points.HIT_SUFFIX}"
    give_up_at = monotonic() + HIT_PATIENCE_S
    while not proof.exists():
        assert monotonic() < give_up_at, f"nobody passed {point}"
        await asyncio.sleep(0.01)
    proof.unlink()


async def resume_after(scene: Scene, seconds: float) -> None:
    """Let whoever stopped itself stay so for a while."""
    stopped = [pid for pid, _ in descendants(scene.up.process.pid) if state_of(pid) == "T"]
    await asyncio.sleep(seconds)
    assert stopped, "nobody stopped"
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state_of(pid: int) -> str:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


async def until_told(receiver: Receiver, rush: Rush) -> None:
    """Wait until the partner has heard of every voucher; of each exactly once, but for repetitions."""
    give_up_at = monotonic() + TOLD_PATIENCE_S
    while True:
        events: dict[str, dict[str, Any]] = {}
        for request in receiver.requests:
            event = msgspec.json.decode(request.body)
            if event["data"]["drop_id"] == rush.drop_id:
                assert events.setdefault(request.webhook_id, event) == event, "one id, two contents"
        told = [voucher["seq"] for event in events.values() for voucher in event["data"]["vouchers"]]
        assert len(told) == len(set(told)), "a voucher was told in two events"
        if set(told) == set(range(1, rush.quantity + 1)):
            return
        assert monotonic() < give_up_at, f"{len(told)} of {rush.quantity} vouchers were told"
        await asyncio.sleep(0.1)


def test_every_point_of_the_code_is_swept() -> None:
    import couponsvc.api.compose  # noqa: PLC0415
    import couponsvc.ledger.drainer  # noqa: PLC0415
    import couponsvc.outbox.relay  # noqa: PLC0415
    import couponsvc.reconcile.reconciler  # noqa: F401, PLC0415

    assert set(TRIGGERS) == kill_points.NAMES
