"""`couponsvc demo`: start the service, let the crowd in, judge, tell, and leave nothing behind."""

import asyncio
import contextlib
import random
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Never

import asyncpg
import uvloop
from redis.exceptions import RedisError
from rich.console import Console

from couponsvc.client import (
    ApiClient,
    ApiRefused,
    CredentialsError,
    GrabClient,
    PartnerClient,
    Unreachable,
)
from couponsvc.demo.afterwards import ask_again
from couponsvc.demo.cpu import cpu_seconds, spent
from couponsvc.demo.figures import figures_of
from couponsvc.demo.hearing import hearing_of, verify_books
from couponsvc.demo.ledger_rows import read_rows
from couponsvc.demo.partner_process import PartnerProcess
from couponsvc.demo.plan import EARLY_S, CrowdPlan
from couponsvc.demo.program import demo_program, free_names
from couponsvc.demo.promises import verify
from couponsvc.demo.report import CheckResult, Costs, Heard, result_table
from couponsvc.demo.rush import Crowd, CrowdFailed, split_crowd
from couponsvc.demo.screen import Screen
from couponsvc.demo.stack import Stack, StackFailed
from couponsvc.programs.apply import apply_program
from couponsvc.programs.program_file import ProgramFile
from couponsvc.support.ending import end_tasks
from couponsvc.support.redis_client import open_redis

PLAIN_WIDTH: Final = 120
"""Columns where there is no terminal that could say."""
EXIT_NOT_SO: Final = 1
EXIT_CANNOT_START: Final = 3
EXIT_INTERRUPTED: Final = 130
LEAD_S: Final = EARLY_S + 1.0
"""From the moment the drops are defined to their opening: time for the early ones to come."""
CONNECTIONS_COUNT: Final = 256
"""Of the whole crowd: more would only lengthen the queue in front of the same two cores."""
LOOK_EVERY_S: Final = 0.5
SETTLE_LOOKS_MAX_COUNT: Final = 30
"""How long pending grants may take to settle after the last answer: 15 s."""
FULL_PERSONS_COUNT: Final = 60_000
"""The crowd for the published stock; a smaller one gets a stock that is smaller in proportion."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says."""

    persons: int = FULL_PERSONS_COUNT
    processes: int = 2
    keep: bool = False
    data_dir: Path | None = None
    workers: int = 1
    partner: bool = False
    """Whether a subscribed partner process receives the events, and its ledger is compared with ours."""
    kill: bool = False
    """Whether the relay and that partner are killed at random meanwhile."""


@dataclass(slots=True)
class _Rush:
    """The facts of one rush."""

    stack: Stack
    program: ProgramFile
    opens_s: float
    crowd: Crowd
    partner: PartnerProcess | None = None
    cpu_before: Mapping[str, float] = field(default_factory=dict)
    cpu_whole: dict[str, float] = field(default_factory=dict)
    cpu_until_gone: dict[str, float] = field(default_factory=dict)

    @property
    def drop_ids(self) -> list[str]:
        return [drop.drop_id for drop in self.program.drops]

    def cpu_so_far(self) -> dict[str, float]:
        """CPU seconds of every process since the crowd was let in; empty where nothing tells."""
        so_far = spent(self.cpu_before, cpu_seconds(self.stack.pid))
        return {**so_far, "clients": self.crowd.cpu_s} if so_far else {}


def run_demo(options: DemoOptions) -> int:
    """Run the demo. Returns its exit code: 0 promises kept, 1 one is broken, 3 it cannot start."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Screen(console) as screen:
            screen.say("starting engines and service …")
            with contextlib.ExitStack() as closing:
                environment = {"COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true"} if options.partner else {}
                stack = closing.enter_context(Stack(options.data_dir, options.workers, environment))
                closing.callback(_deaf)
                screen.say(f"serving on {stack.run.url}")
                return uvloop.run(_run(options, stack, screen))
    except (StackFailed, CrowdFailed, Unreachable, ApiRefused, CredentialsError) as error:
        return _cannot(str(error))
    except (OSError, asyncpg.PostgresError, RedisError) as error:
        return _cannot(str(error) or type(error).__name__)
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; everything is stopped and removed")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _cannot(reason: str) -> int:
    print(f"couponsvc: demo: {reason}", file=sys.stderr)  # noqa: T201 - the command's output
    return EXIT_CANNOT_START


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _deaf() -> None:
    """While stopping, a further Ctrl-C would leave things behind; stopping is bounded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def _run(options: DemoOptions, stack: Stack, screen: Screen) -> int:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with ApiClient(stack.run.url, stack.credentials.operator_token) as api:
        async with Crowd(options.processes) as crowd:
            with contextlib.ExitStack() as closing:
                partner = closing.enter_context(_subscribed(stack)) if options.partner else None
                rush = await _prepare(options, stack, crowd, api, screen)
                rush.partner = partner
                async with _killing(options, rush, screen):
                    await _let_in(options, rush, api, screen)
                kept = await _judge(rush, api, screen)
        if options.keep:
            await _serve_on(stack, screen)
    return 0 if kept else EXIT_NOT_SO


def _subscribed(stack: Stack) -> PartnerProcess:
    credentials = stack.credentials
    client = PartnerClient(stack.run.url, credentials.key_id, credentials.secret)
    return PartnerProcess(client, stack.records_dir)


@contextlib.asynccontextmanager
async def _killing(options: DemoOptions, rush: _Rush, screen: Screen) -> AsyncIterator[None]:
    """While the block runs, the relay and the partner are killed at random, if that was asked for."""
    if rush.partner is None or not options.kill:
        yield
        return
    seed = secrets.randbits(32)
    screen.say(f"the relay and the partner are killed at random meanwhile (seed {seed})")
    killing = asyncio.create_task(rush.partner.kill_at_random(rush.stack.pid, random.Random(seed)))  # noqa: S311 - no secret
    try:
        yield
    finally:
        await end_tasks(killing)


async def _prepare(options: DemoOptions, stack: Stack, crowd: Crowd, api: ApiClient, screen: Screen) -> _Rush:
    """Define the program so that it opens in a moment, by the clock that opens it: Redis'."""
    program = demo_program(options.persons, FULL_PERSONS_COUNT, stack.credentials.partner_id)
    program = free_names(program, lambda drop_id: api.find(f"/v1/drops/{drop_id}") is not None)
    redis = open_redis(stack.run.redis_url)
    try:
        seconds, microseconds = await redis.time()
    finally:
        await redis.aclose()
    opens_s = round(seconds + microseconds / 1e6 + LEAD_S, 3)
    program = program.moved_to(datetime.fromtimestamp(opens_s, UTC))
    apply_program(api, program, lambda applied: screen.say(str(applied)))
    return _Rush(stack, program, opens_s, crowd)


async def _let_in(options: DemoOptions, rush: _Rush, api: ApiClient, screen: Screen) -> None:
    plan = CrowdPlan(
        base_url=rush.stack.run.url,
        key_id=rush.stack.credentials.key_id,
        secret=rush.stack.credentials.secret,
        drop_ids=rush.drop_ids,
        opens_ns=int(rush.opens_s * 1e9),
        run=f"r{secrets.token_hex(4)}",
        first_person=1,
        persons_count=options.persons,
        connections_count=CONNECTIONS_COUNT,
        seed=secrets.randbits(32),
        records_path="",
    )
    screen.say(f"{options.persons:,} persons come from {options.processes} processes")
    rush.cpu_before = cpu_seconds(rush.stack.pid)
    rushing = asyncio.create_task(
        rush.crowd.rush(split_crowd(plan, options.processes, rush.stack.records_dir))
    )
    looking = asyncio.create_task(_look(rush, api, screen))
    try:
        await asyncio.wait([rushing, looking], return_when=asyncio.FIRST_COMPLETED)
        if looking.done():
            looking.result()  # the service ended; it says why
        rushing.result()
    finally:
        await end_tasks(rushing, looking)
    rush.cpu_whole = rush.cpu_so_far()


async def _look(rush: _Rush, api: ApiClient, screen: Screen) -> Never:
    """Show stock and answers until cancelled.

    Raises:
        StackFailed: the service ended.
    """
    while True:
        rush.stack.ensure_running()
        try:
            drops = await asyncio.to_thread(_read_drops, api, rush.drop_ids)
        except (ApiRefused, Unreachable) as error:
            screen.say(f"stock unknown: {error}")
        else:
            if not rush.cpu_until_gone and not any(drop["available"] + drop["pending"] for drop in drops):
                rush.cpu_until_gone = rush.cpu_so_far()
            screen.show(time.time() - rush.opens_s, drops, rush.crowd.requests_count, rush.crowd.outcomes)
        await asyncio.sleep(LOOK_EVERY_S)


def _read_drops(api: ApiClient, drop_ids: Sequence[str]) -> list[dict[str, Any]]:
    return [api.get(f"/v1/drops/{drop_id}") for drop_id in drop_ids]


async def _judge(rush: _Rush, api: ApiClient, screen: Screen) -> bool:
    """Collect all evidence and tell."""
    screen.say("everybody is answered; asking again and comparing with Postgres …")
    presses = rush.crowd.presses()
    credentials = rush.stack.credentials
    async with GrabClient(rush.stack.run.url, credentials.signing_key()) as client:
        presses += await ask_again(client, presses, seed=int(rush.opens_s))
    await _wait_until_settled(api, rush.drop_ids)
    rows = await read_rows(rush.stack.run.postgres_dsn, rush.drop_ids)
    promises, figures = verify(presses, rows), figures_of(presses, rows)
    heard: Heard | None = None
    if rush.partner is not None:
        await rush.partner.until_heard(
            len(rows.vouchers), lambda books: verify_books(books, rows).kept, screen.say
        )
        books = rush.partner.books()
        promises.append(verify_books(books, rows))
        heard = Heard(hearing_of(books, rows), rush.partner.kills)
    check = await _check(rush.stack)
    costs = Costs(rush.cpu_whole, rush.cpu_until_gone, figures.confirmed_count, figures.requests_count)
    screen.console.print(
        result_table(rush.program.program.name, promises, check, figures, costs, heard=heard)
    )
    return all(promise.kept for promise in promises) and check.exit_code == 0


async def _wait_until_settled(api: ApiClient, drop_ids: Sequence[str]) -> None:
    for _ in range(SETTLE_LOOKS_MAX_COUNT):
        if not any(drop["pending"] for drop in _read_drops(api, drop_ids)):
            return
        await asyncio.sleep(LOOK_EVERY_S)


async def _check(stack: Stack) -> CheckResult:
    """Let the service's own checker look, in its own process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "couponsvc",
        "check",
        "--data-dir",
        str(stack.data_dir),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return CheckResult(process.returncode or 0, lines[-1] if lines else "")


async def _serve_on(stack: Stack, screen: Screen) -> None:
    screen.say(f"\nserving on {stack.run.url} until Ctrl-C; API documents at {stack.run.url}/docs")
    screen.say(f"credentials: {stack.data_dir / 'credentials.json'}")
    screen.say(f'try: curl -H "Authorization: Bearer <operator token>" {stack.run.url}/v1/programs')
    with contextlib.suppress(asyncio.CancelledError):  # how one ends it; the result stands
        while True:
            await asyncio.sleep(1)
            stack.ensure_running()
