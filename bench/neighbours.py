"""`python -m bench.neighbours`: what one partner notices of another one that floods the service.

A modest partner sends a fixed stream of grabs (open loop: latency counts from when a request was due)
alone, then while a flooder asks with hundreds of connections as fast as it is answered, then while the
flooder does so and its rate is limited. Rounds of all three take turns on one service; only ratios
within a run mean something, and generator and service share the cores.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Final, NamedTuple

import uvloop

from bench.cpu import read_processes, sum_by_kind
from bench.open_loop import run_apart
from bench.place import run_directory
from bench.request_file import write_requests
from bench.service import PROGRAM_ID, TEMPLATE_ID, Service
from couponsvc.client import ApiClient, GrabClient
from couponsvc.demo.stack import Stack
from couponsvc.support.signing import HmacKey, SigningKey

SCRIPT: Final = Path(__file__).with_name("flood.lua")
FLOODER: Final = "bank-a"
MODEST: Final = "wallet-b"
DROP_ID: Final = "bench-neighbours"
QUANTITY: Final = 10_000_000
ALONE: Final = "alone"
FLOODED: Final = "flooded"
LIMITED: Final = "limited"
SETTINGS: Final = (ALONE, FLOODED, LIMITED)
FLOOD_CONNECTIONS: Final = 256
MODEST_CONNECTIONS: Final = 32
MODEST_RATE_PER_S: Final = 100
FLOOD_REQUEST_COUNTS: Final = {FLOODED: 30_000, LIMITED: 8_000}
"""Prepared per round; a flood that is faster asks for the same again."""
RAMP_S: Final = 1.0
"""The flood is on before the stream begins: it reads its requests and connects. What
an earlier one left is over."""
LEAD_IN_S: Final = 1.0
"""The stream's first second is told apart: what was in work when it began is in front of it."""
SNAPSHOT_S: Final = 2.5
"""A limit is in force in every process after it."""


class Seen(NamedTuple):
    """What the modest partner saw in one round, and what the service spent."""

    p50_ms: float
    p99_ms: float
    first_second_max_ms: float
    answered: Mapping[int, int]
    flood_decided_per_s: float
    """Grabs of the flooder that were decided, of whatever kind."""
    flood_refused_per_s: float
    cpu_share: Mapping[str, float]
    """Of one core, by kind of process."""


@dataclass
class Neighbours:
    """A service, and two partners with a drop in common."""

    service: Service
    keys: Mapping[str, SigningKey]
    data_dir: Path
    postgres_dsn: str
    directory: Path
    rate: tuple[int, int]
    flood_connections: int = FLOOD_CONNECTIONS
    lots: "count[int]" = field(default_factory=count)
    limited: bool = False

    def requests(self, partner_id: str, request_count: int) -> Path:
        """A file of signed grabs of new persons."""
        lot_no = next(self.lots)
        path = self.directory / f"{partner_id}-{lot_no}.requests"
        with contextlib.closing(GrabClient(self.service.url, self.keys[partner_id])) as client:
            write_requests(
                path,
                (
                    client.grab_request(DROP_ID, f"p-{lot_no}-{place}", f"n-{lot_no}-{place}")
                    for place in range(request_count)
                ),
            )
        return path

    async def limit(self) -> None:
        """Limit the flooder, and wait until every process knows."""
        per_second, burst = self.rate
        await self._set_limit("--grabs-per-second", str(per_second), "--burst", str(burst))
        self.limited = True

    async def lift(self) -> None:
        """Lift the limit, and wait until every process knows."""
        await self._set_limit("--none")
        self.limited = False

    async def _set_limit(self, *options: str) -> None:
        await asyncio.to_thread(command, self.data_dir, "partner", "limit", FLOODER, *options)
        await asyncio.sleep(SNAPSHOT_S)

    async def round(self, setting: str, seconds: float) -> Seen:
        """One round."""
        if setting == LIMITED and not self.limited:
            await self.limit()
        elif setting == FLOODED and self.limited:
            await self.lift()
        modest = self.requests(MODEST, int(MODEST_RATE_PER_S * (seconds + LEAD_IN_S + 1)))
        flood = None if setting == ALONE else self.requests(FLOODER, FLOOD_REQUEST_COUNTS[setting])
        flood_s = seconds + LEAD_IN_S + 2 * RAMP_S
        async with flooding(self.service.url, flood, flood_s, self.flood_connections):
            await asyncio.sleep(RAMP_S)
            began_s = monotonic()
            before, cpu_before = self.service.counts(), sum_by_kind(read_processes(), self.service.roots)
            seen = await run_apart(
                self.service.url,
                modest,
                rate_per_s=MODEST_RATE_PER_S,
                duration_s=seconds + LEAD_IN_S,
                connections=MODEST_CONNECTIONS,
                poisson=True,
                lead_in_s=LEAD_IN_S,
            )
            cpu = sum_by_kind(read_processes(), self.service.roots)
            took_s = monotonic() - began_s
            statuses = Counter(self.service.counts().since(before).statuses)
        statuses.subtract({str(status): times for status, times in seen.answered.items()})
        refused = statuses.pop("429", 0)
        return Seen(
            seen.latency.p50_ms,
            seen.latency.p99_ms,
            seen.lead_in.max_ms,
            seen.answered,
            sum(statuses.values()) / took_s,
            refused / took_s,
            {kind: (cpu[kind] - cpu_before[kind]) / 1e6 / took_s for kind in cpu},
        )


@contextlib.asynccontextmanager
async def flooding(
    url: str, requests: Path | None, seconds: float, connections: int = FLOOD_CONNECTIONS
) -> AsyncIterator[None]:
    """A flood in a process of its own for as long as the context lasts, at most `seconds` and some."""
    if requests is None:
        yield
        return
    arguments = ["-t1", f"-c{connections}", f"-d{int(seconds) + 20}s", "--timeout=20s"]
    process = await asyncio.create_subprocess_exec(
        "wrk", *arguments, "-s", str(SCRIPT), url, "--", str(requests), stdout=subprocess.DEVNULL
    )
    try:
        yield
        assert process.returncode is None, "the flood ended before the round"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def command(data_dir: Path, *arguments: str) -> str:
    """Run `couponsvc …` on a running service; what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "couponsvc", *arguments, "--data-dir", str(data_dir)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@contextlib.asynccontextmanager
async def opened(directory: Path, *, workers: int, rate: tuple[int, int]) -> AsyncIterator[Neighbours]:
    """A service with both partners and an open drop."""
    with Stack(directory / "neighbours", workers) as stack, contextlib.closing(Service(stack)) as service:
        await asyncio.to_thread(command, stack.data_dir, "partner", "create", MODEST)
        made = json.loads(
            await asyncio.to_thread(command, stack.data_dir, "key", "create", "--partner", MODEST, "--json")
        )
        keys: dict[str, SigningKey] = {
            FLOODER: stack.credentials.signing_key(),
            MODEST: HmacKey(made["key_id"], base64.b64decode(made["secret"])),
        }
        service.define_drop(DROP_ID, QUANTITY)
        operator = ApiClient(service.url, stack.credentials.operator_token)
        with contextlib.closing(operator):
            found = operator.get(f"/v1/drops/{DROP_ID}")
            body = {
                "program_id": PROGRAM_ID,
                "template_id": TEMPLATE_ID,
                "quantity": QUANTITY,
                "per_person_limit": 1,
                "opens_at": found["opens_at"],
                "closes_at": found["closes_at"],
                "partners": [FLOODER, MODEST],
            }
            operator.put(f"/v1/drops/{DROP_ID}", body)
        yield Neighbours(service, keys, stack.data_dir, stack.run.postgres_dsn, directory, rate)


def ratios(rounds: Mapping[str, Sequence[Seen]], setting: str) -> tuple[float, float]:
    """p50 and p99 of a setting over those alone: medians of the ratios of rounds that took turns."""
    pairs = list(zip(rounds[ALONE], rounds[setting], strict=True))
    return (
        median(seen.p50_ms / alone.p50_ms for alone, seen in pairs),
        median(seen.p99_ms / alone.p99_ms for alone, seen in pairs),
    )


class Plan(NamedTuple):
    """What is measured."""

    settings: Sequence[str]
    rounds: int
    seconds: float
    rate: tuple[int, int]
    """A second, and at once: of the flooder where it is limited."""
    workers: int
    connections: int
    """Of the flooder."""


async def measure(plan: Plan) -> dict[str, list[Seen]]:
    """Rounds of every setting in turn."""
    found: dict[str, list[Seen]] = {setting: [] for setting in plan.settings}
    with run_directory() as directory:
        async with opened(directory, workers=plan.workers, rate=plan.rate) as neighbours:
            neighbours.flood_connections = plan.connections
            await neighbours.round(ALONE, 1.0)  # the first answers are odd
            for _ in range(plan.rounds):
                for setting in plan.settings:
                    seen = await neighbours.round(setting, plan.seconds)
                    found[setting].append(seen)
                    print(describe(setting, seen), flush=True)
            code, said = await neighbours.service.check()
            assert code == 0, said
    return found


def describe(setting: str, seen: Seen) -> str:
    """One line."""
    cpu = " ".join(f"{kind} {share:.2f}" for kind, share in seen.cpu_share.items())
    return (
        f"{setting:8} p50 {seen.p50_ms:7.1f} ms  p99 {seen.p99_ms:7.1f} ms  "
        f"first second at most {seen.first_second_max_ms:.0f} ms  {dict(seen.answered)}  "
        f"flood decided {seen.flood_decided_per_s:6.0f}/s refused {seen.flood_refused_per_s:6.0f}/s  "
        f"cores: {cpu}"
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--connections", type=int, default=FLOOD_CONNECTIONS, help="of the flooder")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rate", type=int, nargs=2, default=(500, 100), metavar=("PER_SECOND", "BURST"))
    options = parser.parse_args()
    plan = Plan(
        options.only,
        options.rounds,
        options.seconds,
        tuple(options.rate),
        options.workers,
        options.connections,
    )
    found = uvloop.run(measure(plan))
    for setting in found.keys() - {ALONE} if ALONE in found else ():
        p50, p99 = ratios(found, setting)
        print(f"{setting} : alone   p50 {p50:.2f}   p99 {p99:.2f}   (medians of {options.rounds} rounds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
