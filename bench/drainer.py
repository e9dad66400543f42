"""What a confirmed voucher costs the drainer, Redis and Postgres, and how soon it is confirmed.

Run `python -m bench.drainer [--against REVISION] [--rounds N] [--seconds S]` at the top of the
checkout. It starts the embedded engines and one `couponsvc drain` per side (this checkout, and a
git revision beside it), and decides batches with the real gate as API processes do: a closed loop
of so many entries in flight. Sides take turns, figures are medians over the rounds. Redis' share is
without the gate's own, which is measured beforehand. Leaves nothing behind.
"""

import argparse
import asyncio
import base64
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Final, NamedTuple

import uvloop
from tests.ledgers import SHARD, Scene
from tests.servers import PostgresServer, RedisServer, short_directory

from couponsvc.gate.grabbing import SCRIPT, grab_command
from couponsvc.limits import BACKLOG_MAX_COUNT
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import make_connection, open_redis
from couponsvc.support.resp import RespLine, open_line
from couponsvc.values import keys, wire
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab

ORIGIN: Final = "bench"
BLESS: Final = "INSERT INTO blessings (shard, run_id, replication_id) VALUES ($1, $2, $3)"
QUANTITY: Final = 50_000_000
CALIBRATION_GRANTS: Final = 5_000
DRAINED_S: Final = 20.0
KINDS: Final = ("drainer", "redis", "postgres")


class Case(NamedTuple):
    """Grants per stream entry, entries in flight, drops that the grants of an entry are spread over."""

    size: int
    in_flight: int
    drops: int


CASES: Final = tuple(
    Case(*numbers)
    for numbers in (
        (1, 1, 1),
        (8, 1, 1),
        (8, 6, 1),
        (1, 48, 1),
        (25, 2, 1),
        (64, 1, 1),
        (64, 2, 8),
        (117, 2, 1),
        (500, 2, 1),
    )
)


class Plan(NamedTuple):
    """What to run: each case so many seconds per side, so many times."""

    cases: Sequence[Case]
    rounds: int
    seconds: float


def cpu_us(pids: Iterable[int]) -> float:
    """CPU time of processes with all their threads, in µs (Linux: schedstat, which has no ticks)."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total_ns += int(task.read_text().split()[0])
    return total_ns / 1000


def with_children(pid: int) -> list[int]:
    """A process and its direct children, such as Postgres' backends."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(int(child) for task in tasks for child in task.read_text().split())]


class Side:
    """One version of the drainer, with a Redis database and a ledger of its own."""

    def __init__(self, name: str, source: Path, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.drops: list[Drop] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(source / "src"),
            "COUPONSVC_REDIS_URL": settings.redis_url,
            "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
            "COUPONSVC_MASTER_KEY": settings.master_key.get_secret_value(),
            "COUPONSVC_METRICS_DIR": str(settings.metrics_dir),
        }
        self.samples: dict[Case, list[list[float]]] = {}
        """Per case: drainer, redis, postgres µs per voucher; p50, p99 ms; grants a second."""
        self._batch_numbers = count(1)
        self._persons = count(1)
        self._sent: dict[int, float] = {}
        self._latencies_ms: list[float] = []
        self._case = Case(1, 1, 1)
        self._until = 0.0
        self._line: RespLine
        self._empty = asyncio.Event()

    def command(self, name: str) -> "subprocess.Popen[bytes]":
        """Start one of our processes, from this side's sources."""
        return subprocess.Popen([sys.executable, "-m", "couponsvc", name], env=self.environment, cwd="/")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Migrate, define drops, and drain; the pid."""
        assert self.command("migrate").wait() == 0
        redis = open_redis(self.settings.redis_url)
        async with await open_pool(self.settings.postgres_dsn.get_secret_value()) as pool:
            scene = Scene(self.settings, pool, redis)
            for number in range(max(case.drops for case in CASES)):
                self.drops.append(await scene.add_drop(f"bench-{number}", QUANTITY))
            info = await redis.info("server", "replication")
            await pool.execute(BLESS, SHARD, info["run_id"], info["master_replid"])
        await redis.aclose()
        self._line = await open_line(make_connection(self.settings.redis_url), timeout_s=30)
        hearing = await open_line(
            make_connection(self.settings.redis_url), timeout_s=30, receive=lambda _, data: self._hear(data)
        )
        await hearing.call("SUBSCRIBE", keys.confirm_channel(SHARD, f"{ORIGIN}-{self.name}"))
        await self._line.call("SCRIPT", "LOAD", SCRIPT.source)
        drainer = self.command("drain")
        try:
            yield drainer.pid
        finally:
            drainer.terminate()
            drainer.wait(10)
            self._line.close()
            hearing.close()

    def grant(self, case: Case) -> "asyncio.Future[list[object]]":
        """Have the gate decide one batch of new persons."""
        batch_no = next(self._batch_numbers)
        used = self.drops[: case.drops]
        rows = []
        for index in range(case.size):
            person, place = next(self._persons), index % case.drops
            grab = Grab(used[place].drop_no, f"1:p-{person:032x}", f"20261001-{person:08}", "app", "370200")
            rows.append(wire.grab_row(place + 1, grab))
        names, arguments = grab_command(
            SHARD,
            wire.encode_origin(f"{ORIGIN}-{self.name}", batch_no),
            [(drop.drop_no, 1) for drop in used],
            rows,
            BACKLOG_MAX_COUNT,
        )
        self._sent[batch_no] = perf_counter()
        self._empty.clear()
        return self._line.ask(["EVALSHA", SCRIPT.digest, len(names), *names, *arguments])

    def _hear(self, data: bytes) -> None:
        sent_s = self._sent.pop(wire.decode_confirmations(data).batch_no, None)
        if sent_s is None:
            return
        self._latencies_ms.append((perf_counter() - sent_s) * 1000)
        if perf_counter() < self._until:
            self.grant(self._case)
        elif not self._sent:
            self._empty.set()

    async def drained(self) -> None:
        """Wait until everything that was granted is confirmed."""
        if self._sent:
            await asyncio.wait_for(self._empty.wait(), DRAINED_S)
        await asyncio.sleep(0.02)  # the acknowledgement trails the confirmation

    async def load(self, case: Case, seconds: float) -> list[float]:
        """Run the closed loop until everything is confirmed; latencies in ms."""
        self._latencies_ms, self._case, self._until = [], case, perf_counter() + seconds
        for _ in range(case.in_flight):
            self.grant(case)
        await asyncio.sleep(seconds)
        await self.drained()
        return self._latencies_ms

    async def measure(self, case: Case, seconds: float, pids: Sequence[int], gate_us: float) -> None:
        """One round of a case; `pids` as KINDS."""
        await self.load(case, 0.1)
        before = [cpu_us(with_children(pid)) for pid in pids]
        began = perf_counter()
        latencies = await self.load(case, seconds)
        elapsed_s = perf_counter() - began
        vouchers = len(latencies) * case.size
        spent = [(cpu_us(with_children(pid)) - at) / vouchers for pid, at in zip(pids, before, strict=True)]
        spent[1] -= gate_us
        cuts = quantiles(latencies, n=100)
        self.samples.setdefault(case, []).append([*spent, cuts[49], cuts[98], vouchers / elapsed_s])


async def gate_shares(
    side: Side, drainer_pid: int, redis_pid: int, cases: Sequence[Case]
) -> dict[Case, float]:
    """Redis' CPU µs per grant for deciding alone, while the drainer stands still."""
    shares: dict[Case, float] = {}
    os.kill(drainer_pid, signal.SIGSTOP)
    for case in cases:
        batches = max(50, min(600, CALIBRATION_GRANTS // case.size))
        before = cpu_us([redis_pid])
        for _ in range(0, batches, case.in_flight):
            await asyncio.gather(*(side.grant(case) for _ in range(case.in_flight)))
        shares[case] = (cpu_us([redis_pid]) - before) / (batches * case.size)
    os.kill(drainer_pid, signal.SIGCONT)
    await side.drained()
    return shares


async def compare(sides: Sequence[Side], plan: Plan, redis_pid: int, postgres_pid: int) -> None:
    """Every case on every side, in turns."""
    async with AsyncExitStack() as stack:
        drainers = [await stack.enter_async_context(side.running()) for side in sides]
        shares = await gate_shares(sides[-1], drainers[-1], redis_pid, plan.cases)
        for number in range(plan.rounds):
            for case in plan.cases:
                turns = list(zip(sides, drainers, strict=True))
                for side, drainer in turns if number % 2 else reversed(turns):
                    await side.measure(case, plan.seconds, [drainer, redis_pid, postgres_pid], shares[case])


def print_table(sides: Sequence[Side], cases: Sequence[Case]) -> None:
    print(
        "grants x in flight (drops) side        drainer    redis postgres      all   p50 ms   p99 ms grants/s"
    )
    for case in cases:
        for side in sides:
            figures = [median(column) for column in zip(*side.samples[case], strict=True)]
            costs = "".join(f"{value:9.1f}" for value in [*figures[:3], sum(figures[:3])])
            name = f"{case.size} x {case.in_flight} ({case.drops})"
            print(f"{name:26} {side.name:10}{costs}{figures[3]:9.2f}{figures[4]:9.2f}{figures[5]:9.0f}")
    print("CPU µs per confirmed voucher; Redis without the gate's share", flush=True)


def checkout(revision: str, directory: Path) -> Path:
    """The service's sources as of a git revision; a directory that has them is taken as it is."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    git = shutil.which("git") or "git"
    packed = subprocess.run([git, "archive", revision, "src", "migrations"], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


async def main(against: Sequence[str], plan: Plan) -> None:
    with (
        short_directory() as redis_dir,
        short_directory() as postgres_dir,
        tempfile.TemporaryDirectory() as other,
    ):
        sources = [("this", Path(__file__).parent.parent)]
        for revision in against:
            name = Path(revision).name[:9]
            target = Path(other, name)
            target.mkdir()
            sources.insert(0, (name, checkout(revision, target)))
        redis_server, postgres_server = RedisServer(redis_dir), PostgresServer(postgres_dir)
        master_key = base64.b64encode(bytes(32)).decode()
        sides = []
        for number, (name, source) in enumerate(sources):
            values = {
                "redis_url": f"{redis_server.url.removesuffix('/0')}/{number}",
                "postgres_dsn": await postgres_server.create_empty_database(),
                "master_key": master_key,
                "metrics_dir": Path(other, f"metrics-{number}"),
            }
            sides.append(Side(name, source, Settings.model_validate(values)))
        redis_pid, postgres_pid = redis_server.engine.pid, postgres_server.engine.pid
        assert redis_pid
        assert postgres_pid
        try:
            await compare(sides, plan, redis_pid, postgres_pid)
        finally:
            redis_server.kill()
            postgres_server.engine.stop()
        print_table(sides, plan.cases)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", nargs="*", default=[], help="git revisions or checkouts to compare with")
    parser.add_argument(
        "--cases", type=int, nargs="*", help="rows of the table, from 1; all if none is named"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="per case, side and round")
    options = parser.parse_args()
    chosen = CASES if options.cases is None else [CASES[place - 1] for place in options.cases]
    uvloop.run(main(options.against, Plan(chosen, options.rounds, options.seconds)))
