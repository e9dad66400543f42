"""Ten thousand requests abandoned in mid-decision: no unit is lost, no answer another's."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from couponsvc.client import GrabClient, grab_until_answered
from tests.faults.raw_http import RawConnection, connect
from tests.faults.rush import PATIENCE, Rush, Up, run_check, running_up

pytestmark = pytest.mark.faults

ABANDONED_COUNT: Final = 10_000
QUANTITY: Final = 9_000
"""Less than the persons that ask, so that a unit taken by nobody would be missed."""
AT_ONCE_COUNT: Final = 48
AFTER_S: Final = (0.0, 0.0, 0.001, 0.004)
"""How long after the last byte a client goes: before, in and after the decision."""


@dataclass
class Crowd:
    """Clients that ask and go, and clients that stay."""

    up: Up
    client: GrabClient
    seed: int
    abandoned: dict[str, str] = field(default_factory=dict)
    """Numbers sent whole → the person they were sent for."""
    kept: dict[str, bytes] = field(default_factory=dict)
    """Numbers confirmed → the voucher's bytes."""
    ways: Counter[str] = field(default_factory=Counter)

    async def abandon(self, turns: "list[int]") -> None:
        """Ask for one person after another, each time going in one of several ways."""
        chance = random.Random(f"{self.seed}-{turns[-1]}")  # noqa: S311 - a plan, no secret
        while turns:
            turn = turns.pop()
            way = chance.choice(("close", "reset", "behind an answer", "two at once", "half"))
            self.ways[way] += 1
            raw = await connect(self.up.url)
            if way == "behind an answer":
                await raw.send(self.request(f"{turn}-answered"))
                answer = await raw.answer()
                self.note(f"{turn}-answered", answer.status, answer.body)
            if way == "two at once":
                await raw.send(self.request(f"{turn}-first") + self.request(str(turn)))
            elif way == "half":  # cut in the middle: never a grab, whatever came before
                await raw.send(self.request(f"{turn}-whole"))
                await raw.send(self.request(str(turn), whole=False)[: chance.randrange(1, 300)])
            else:
                await raw.send(self.request(str(turn)))
            await go(raw, way, chance.choice(AFTER_S))

    def request(self, name: str, *, whole: bool = True) -> bytes:
        person, number = f"canary-person-{name}", f"canary-number-{name}"
        if whole:
            self.abandoned[number] = person
        return self.client.grab_request("rush", person, number)

    async def stay(self, stop: asyncio.Event) -> None:
        """Ask on kept connections all the while; every answer must be one's own."""
        place = 0
        while not stop.is_set():
            number = f"canary-number-stays-{place}"
            answer = await self.client.grab("rush", f"canary-person-stays-{place}", number)
            self.note(number, answer.status, answer.body)
            place += 1
            await asyncio.sleep(0.01)

    def note(self, number: str, status: int, body: bytes) -> None:
        """An answer names its own number and person, or its number where it is refused."""
        if status in {200, 201, 202, 409}:
            assert number.encode() in body, (number, status)
        if status in {200, 201}:
            assert number.replace("number", "person").encode() in body
            assert self.kept.setdefault(number, body) == body
            self.abandoned.pop(number, None)

    async def ask_again(self) -> Counter[str]:
        """Everybody comes back with the same number."""
        told: Counter[str] = Counter()
        waiting = list(self.abandoned.items()) + [
            (number, number.replace("number", "person")) for number in self.kept
        ]

        async def some() -> None:
            while waiting:
                number, person = waiting.pop()
                answer = await grab_until_answered(self.client, "rush", person, number, retries=PATIENCE)
                told[answer.outcome] += 1
                self.note(number, answer.status, answer.body)

        await asyncio.gather(*(some() for _ in range(AT_ONCE_COUNT)))
        return told


async def go(raw: RawConnection, way: str, after_s: float) -> None:
    if after_s:
        await asyncio.sleep(after_s)
    if way == "reset":
        raw.abort()
    else:
        raw.transport.close()


async def test_what_is_abandoned_in_mid_decision_is_granted_to_its_asker_or_to_nobody(tmp_path: Path) -> None:
    async with running_up(tmp_path / "data", "--workers", "2") as up:
        rush = Rush(up, quantity=QUANTITY, persons=0)
        await asyncio.to_thread(rush.define)
        async with GrabClient(up.url, up.key) as client:
            crowd = Crowd(up, client, seed=20_261_122)
            turns = list(range(ABANDONED_COUNT))
            stop = asyncio.Event()
            staying = asyncio.create_task(crowd.stay(stop))
            await asyncio.gather(*(crowd.abandon(turns) for _ in range(AT_ONCE_COUNT)))
            stop.set()
            await staying
            assert min(crowd.ways.values()) > ABANDONED_COUNT / 10, crowd.ways

            kept_before = len(crowd.kept)
            told = await crowd.ask_again()
            figures = await asyncio.to_thread(rush.wait_for_state, "sold_out")

        assert set(told) <= {"issued", "repeated", "sold_out"}, told
        assert told["issued"] + told["repeated"] == QUANTITY == figures["issued"], (told, figures)
        assert told["repeated"] > kept_before + ABANDONED_COUNT // 10, "many had been granted to who was gone"
        check = await asyncio.to_thread(run_check, up.data_dir)
        assert check.returncode == 0, check.stdout + check.stderr
        await asyncio.to_thread(rush.judge_logs)
