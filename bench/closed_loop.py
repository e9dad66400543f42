"""A closed loop: `wrk` with one thread, each connection asks again as soon as it is answered.

It measures how much a service can do. What it says of latency is that of a service driven as fast as
it goes, by clients that wait politely; see `bench.open_loop` for the other kind.
"""

import asyncio
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

SCRIPT: Final = Path(__file__).with_name("closed_loop.lua")
RAMP_S: Final = 0.25
"""Not counted: connections are made, all of them ask at once, the first batches are odd."""
PATIENCE_S: Final = 15
"""How long wrk waits for the last answers; it ends as soon as they are there."""
TIMEOUT_S: Final = 20
"""wrk's own; never reached."""
_LINE: Final = re.compile(rb"^BENCH (\{.*\})$", re.MULTILINE)


class LoopFailed(RuntimeError):
    """The round means nothing: answers are missing, connections broke, or wrk did not run."""


@dataclass(frozen=True)
class LoopResult:
    """One run of wrk.

    Attributes:
        requests_per_s: Within the window, ramp and end left out.
        answered: All answers; as many as requests were sent.
        refused: Those with a status of 400 or above.
        p50_ms: Half of all answers came within it; so for the others.
        window_s: As it was; shorter than asked for where requests ran out.
        ran_out: Every prepared request was sent before the time was over.
        wrk_cpu_us: CPU of the generator while it sent, in all.
    """

    requests_per_s: float
    answered: int
    refused: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    window_s: float
    ran_out: bool
    wrk_cpu_us: float

    @property
    def accepted(self) -> int:
        """Answers with a status below 400."""
        return self.answered - self.refused


def missing() -> str | None:
    """Why it cannot run and what to install; None if it can."""
    return None if shutil.which("wrk") else "wrk is missing: apt-get install wrk"


async def run_wrk(url: str, requests: Path, *, connections: int, window_s: float) -> LoopResult:
    """Send the requests of a file, each once, for `RAMP_S` and then `window_s` seconds.

    Raises:
        LoopFailed: wrk ended badly, a request was not answered, or a connection broke.
    """
    at_most_s = int(RAMP_S + window_s) + 1 + PATIENCE_S
    command = ["wrk", "-t1", f"-c{connections}", f"-d{at_most_s}s", f"--timeout={TIMEOUT_S}s"]
    command += ["-s", str(SCRIPT), url, "--", str(requests), str(connections), str(RAMP_S), str(window_s)]
    began = perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = _LINE.search(output)
    if process.returncode or found is None:
        last = (output.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise LoopFailed(f"wrk failed after {perf_counter() - began:.1f} s: {last}")
    return judge(json.loads(found[1]))


def judge(figures: dict[str, Any]) -> LoopResult:
    """Make a result of what the script printed.

    Raises:
        LoopFailed: not every request was answered, or a connection broke.
    """
    unanswered = figures["sent"] - figures["answered"]
    if unanswered or figures["broken"]:
        raise LoopFailed(f"{unanswered} requests were not answered, {figures['broken']} connections broke")
    within = figures["at_end"] - figures["at_open"]
    if figures["window_s"] <= 0 or within <= 0:
        raise LoopFailed(f"no request was answered within the window ({figures['answered']} in all)")
    return LoopResult(
        requests_per_s=within / figures["window_s"],
        answered=figures["answered"],
        refused=figures["status_400_up"],
        p50_ms=figures["p50_ms"],
        p90_ms=figures["p90_ms"],
        p99_ms=figures["p99_ms"],
        window_s=figures["window_s"],
        ran_out=bool(figures["ran_out"]),
        wrk_cpu_us=figures["cpu_s"] * 1e6,
    )
