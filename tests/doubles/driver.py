"""A small crowd that records everything as a load test does, without locust. Real HTTP, signed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time

from loadtests.oracle import RunRecords
from loadtests.oracle.evidence import Figures
from loadtests.records import (
    ABANDONED,
    GRAB,
    LOOK_UP,
    OPERATOR,
    SAMPLES_FILE,
    Answered,
    Clock,
    DropDefinition,
    DropSample,
    Operation,
    RecordWriter,
    RunFacts,
    SampleWriter,
    write_facts,
)

from couponsvc.client import Answer, GrabClient
from couponsvc.client.answers import PERSON_LIMIT
from couponsvc.support.signing import SigningKey

WORKER = "w-1"
PENDING_MAX_COUNT = 5
PAUSE_S = 0.1
ROUNDS_AFTERWARDS_COUNT = 5
ReadFigures = Callable[[str], Awaitable[Figures]]
Operate = Callable[[str, str, dict[str, int]], Awaitable[object]]


@dataclass
class Crowd:
    """So many persons per drop, a few at a time and in order, so that a busy machine changes nothing."""

    drops: Sequence[DropDefinition]
    persons_count: int
    lanes_count: int = 6
    plan: Mapping[int, Sequence[tuple[str, dict[str, int]]]] = field(default_factory=dict)
    """Before this person comes, the operator does this to the first drop; PAUSE_S between two."""
    mistaken: bool = True
    """Whether some use another person's number."""
    tolerance_ms: float = 5.0
    complete: bool = True
    operations: list[Operation] = field(default_factory=list)


async def drive(
    url: str, key: SigningKey, crowd: Crowd, directory: Path, *, figures: ReadFigures, operate: Operate
) -> RunRecords:
    """Run the crowd and leave a run directory as locust's workers do."""
    started_ms = time() * 1000
    with (
        RecordWriter(directory / f"records-{WORKER}.bin") as records,
        SampleWriter(directory / SAMPLES_FILE) as samples,
    ):
        async with GrabClient(url, key, connections_max_count=48, timeout_s=2.0) as client:
            over = asyncio.Event()
            observing = asyncio.create_task(_observe(crowd, figures, samples, over))
            coming = iter([(place, drop) for place in range(crowd.persons_count) for drop in crowd.drops])
            operating: list[asyncio.Task[None]] = []

            async def lane() -> None:
                for place, drop in coming:
                    if place in crowd.plan and drop is crowd.drops[0]:
                        done = asyncio.Event()
                        operating.append(asyncio.create_task(_operate(crowd, place, operate, done)))
                        await done.wait()
                    await _Person(client, records, crowd, drop, place).live()

            await asyncio.gather(*(lane() for _ in range(crowd.lanes_count)))
            await asyncio.gather(*operating)
            over.set()
            await observing
    clock = Clock(tolerance_ms=crowd.tolerance_ms)
    write_facts(
        directory,
        RunFacts(
            scenario="double_press",
            host=url,
            started_ms=started_ms,
            ended_ms=time() * 1000,
            persons=crowd.persons_count * len(crowd.drops),
            drops=crowd.drops,
            operations=crowd.operations,
            clocks={WORKER: clock, OPERATOR: clock},
            complete=crowd.complete,
        ),
    )
    return RunRecords(directory)


class _Person:
    """Presses until told something that stands, then some of them press once more."""

    def __init__(
        self, client: GrabClient, records: RecordWriter, crowd: Crowd, drop: DropDefinition, place: int
    ) -> None:
        self.client, self.records, self.crowd, self.drop, self.place = client, records, crowd, drop, place
        self.person = f"p-{place}"
        self.number = f"{drop.drop_id}-n-{place}"

    async def live(self) -> None:
        if self.place % 7 == 3:
            await self.abandon(self.number)
        if self.place % 11 == 10:
            await asyncio.gather(self.press(self.number), self.press(f"{self.number}-b"))
        else:
            await self.press(self.number)
        if self.crowd.mistaken and self.place % 40 == 39:
            await self.ask(f"{self.drop.drop_id}-n-{self.place - 1}")

    async def press(self, number: str) -> None:
        """With one number until it is settled; gives up at the first or second time sold out."""
        patience = 1 + self.place % 2
        sold_out = pending = 0
        for _ in range(80):
            answer = await self.ask(number, respond_async=self.place % 9 == 4)
            sold_out += answer.outcome == "sold_out"
            pending += answer.outcome in {"pending", "person_limit"}
            if answer.confirmed:
                break
            again = answer.retryable or answer.status in {500, 503}
            if not again or sold_out >= patience or pending >= PENDING_MAX_COUNT:
                return
            await asyncio.sleep(0.015)
        if self.place % 3 == 0:
            await self.ask(number)
        if self.place % 5 == 0:
            await self.ask(f"{number}-again")
        if self.place % 4 == 1:
            self.keep(number, await self.client.look_up(self.drop.drop_id, number), LOOK_UP)

    async def ask(self, number: str, *, respond_async: bool = False) -> Answer:
        answer = await self.client.grab(self.drop.drop_id, self.person, number, respond_async=respond_async)
        self.keep(number, answer)
        return answer

    async def abandon(self, number: str) -> None:
        answer = await self.client.abandon_grab(self.drop.drop_id, self.person, number)
        self.keep(number, answer, code=ABANDONED)

    def keep(self, number: str, answer: Answer, action: str = GRAB, code: str = "") -> None:
        refusal = answer.refusal
        voucher = answer.body if answer.confirmed else b""
        if refusal.code == PERSON_LIMIT:
            voucher = bytes(refusal.voucher)
        self.records.write(
            Answered(
                sent_ms=answer.sent_ns / 1e6,
                answered_ms=answer.settled_ns / 1e6,
                intended_ms=answer.sent_ns / 1e6,
                worker=WORKER,
                action=action,
                drop_id=self.drop.drop_id,
                person_token=self.person,
                out_request_no=number,
                status=answer.status,
                code=code or refusal.code,
                retryable=refusal.retryable if refusal.code else None,
                voucher=voucher,
            )
        )


async def _observe(crowd: Crowd, figures: ReadFigures, samples: SampleWriter, over: asyncio.Event) -> None:
    """Look every 20 ms, and a few times more when it is over."""
    rounds = 0
    while rounds < ROUNDS_AFTERWARDS_COUNT:
        rounds += over.is_set()
        for drop in crowd.drops:
            found = await figures(drop.drop_id)
            counts = (found.available, found.pending, found.issued)
            samples.write(DropSample(drop.drop_id, time() * 1000, found.state, *counts))
        await asyncio.sleep(0.02)


async def _operate(crowd: Crowd, place: int, operate: Operate, done: asyncio.Event) -> None:
    """Do what is planned for this place; `done` is set after the first of it."""
    drop = crowd.drops[0]
    for what, body in crowd.plan[place]:
        if done.is_set():
            await asyncio.sleep(PAUSE_S)
        sent_ms = time() * 1000
        await operate(drop.drop_id, what, body)
        crowd.operations.append(
            Operation(
                drop_id=drop.drop_id,
                what=what,
                sent_ms=sent_ms,
                answered_ms=time() * 1000,
                quantity_after=body.get("current_quantity", 0) + body.get("add", 0),
            )
        )
        done.set()
