"""Looks at a service from beside the load: memory, backlog, what grabs are told, and whether it is kept."""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from time import monotonic
from typing import Final, NamedTuple

import httpx2
from redis.exceptions import RedisError

from bench.cpu import PROC
from bench.scale.service import SHARD, Service
from bench.service import find_roots
from couponsvc.values import keys

SAMPLE_S: Final = 1.0
PROBE_S: Final = 0.25
_TOLD: Final = re.compile(r'^couponsvc_grab_answers_total\{answer="(\w+)"\} (\S+)$', re.MULTILINE)


class Sample(NamedTuple):
    """One look."""

    at: float
    """By `monotonic`."""
    resident_mb: Mapping[str, float]
    """By kind of process, all of a kind together."""
    backlog: int


class Promise(NamedTuple):
    """What a probe was told, to be held against the ledger."""

    person_token: str
    out_request_no: str
    status: int
    at: float
    problem: str


class Watch:
    """Samples and probes until it is ended."""

    def __init__(self, service: Service, drop_id: str) -> None:
        self._service: Final = service
        self._drop_id: Final = drop_id
        self._stop: Final = asyncio.Event()
        self.samples: Final[list[Sample]] = []
        self.probes: Final[list[Promise]] = []

    async def run(self) -> None:
        """Sample and probe until `end`."""
        await asyncio.gather(self._sample(), self._probe())

    def end(self) -> None:
        """Look no more."""
        self._stop.set()

    async def kept(self) -> Counter[str]:
        """What became of the probes that were told 201 or 202: `kept`, or how they were not."""
        found: Counter[str] = Counter()
        for probe in self.probes:
            if probe.status in {HTTPStatus.CREATED, HTTPStatus.ACCEPTED}:
                again = await self._service.grab(self._drop_id, probe.person_token, probe.out_request_no)
                found["kept" if again.status == HTTPStatus.OK else f"lost: now {again.status}"] += 1
        return found

    async def _sample(self) -> None:
        while not await self._stopped(SAMPLE_S):
            with suppress(RedisError, OSError):
                backlog = await self._service.redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD)
                self.samples.append(
                    Sample(monotonic(), resident_mb(self._service.root_pid), int(backlog or 0))
                )

    async def _probe(self) -> None:
        while not await self._stopped(PROBE_S):
            name = f"probe-{len(self.probes)}"
            began = monotonic()
            try:
                answer = await self._service.grab(self._drop_id, f"p-{name}", name)
            except OSError as error:
                self.probes.append(Promise(f"p-{name}", name, 0, began, type(error).__name__))
            else:
                self.probes.append(Promise(f"p-{name}", name, answer.status, began, answer.outcome))

    async def _stopped(self, within_s: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), within_s)
        return self._stop.is_set()


def resident_mb(up_pid: int) -> dict[str, float]:
    """Resident memory of an `up` and its children, by kind."""
    found: Counter[str] = Counter()
    for kind, pids in find_roots(up_pid).items():
        for pid in pids:
            with suppress(OSError):
                status = (PROC / str(pid) / "status").read_text("ascii")
                found[kind] += int(re.findall(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)[0])
    return {kind: kb / 1024 for kind, kb in found.items()}


async def told(url: str) -> Counter[str]:
    """What grabs were told so far, by kind (`values.answer.AnswerKind`)."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        text = (await client.get("/metrics")).text
    return Counter({kind: int(float(count)) for kind, count in _TOLD.findall(text)})
