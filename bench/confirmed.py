"""How many confirmed vouchers a second one API process and one drainer reach, and at what CPU.

Starts `couponsvc up`, signs every request beforehand, and lets `wrk` (Debian package) send them in
a closed loop, a new person each; prints vouchers a second, latency, and CPU microseconds per
voucher by process. Run: `python bench/confirmed.py [--connections 64 256] [--requests 60000]`.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.faults.rush import Up, running_up

from couponsvc.client import GrabClient

SECONDS: Final = 5
TICKS: Final = os.sysconf("SC_CLK_TCK")
WRK: Final = """
local file = io.open("%s", "rb")
local requests, at = {}, 0
while true do
  local size = file:read(8)
  if not size then break end
  requests[#requests + 1] = file:read(tonumber(size))
end
request = function() at = at %% #requests + 1; return requests[at] end
local statuses = {}
response = function(status) statuses[status] = (statuses[status] or 0) + 1 end
"""
KINDS: Final = ("api", "drain", "redis", "postgres", "reconcile")


def define(up: Up, drop_id: str, quantity: int) -> None:
    now = datetime.now(UTC)
    with up.operator() as operator:
        operator.put("/v1/programs/bench", {"name": "Bench"})
        terms = {"name": "T", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48}
        operator.put("/v1/programs/bench/templates/dining-20", terms)
        body = {
            "program_id": "bench",
            "template_id": "dining-20",
            "quantity": quantity,
            "per_person_limit": 1,
            "opens_at": (now - timedelta(minutes=1)).isoformat(),
            "closes_at": (now + timedelta(hours=1)).isoformat(),
            "partners": ["bank-a"],
        }
        operator.put(f"/v1/drops/{drop_id}", body)
        while operator.get(f"/v1/drops/{drop_id}")["state"] != "open":
            time.sleep(0.05)


def cpu_us(up: Up) -> dict[str, float]:
    """CPU microseconds so far by kind of process, ended children of a process included."""
    used = {}
    for kind in KINDS:
        ticks = 0
        for pid in up.pids(kind):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
        used[kind] = ticks * 1e6 / TICKS
    return used


def issued(up: Up, drop_id: str) -> int:
    with up.operator() as operator:
        return int(operator.get(f"/v1/drops/{drop_id}")["issued"])


def run_wrk(up: Up, requests: Path, script: Path, connections: int) -> str:
    script.write_text(WRK % requests)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-s", str(script), up.url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def start_spy(py_spy: str, up: Up, kind: str, connections: int) -> "subprocess.Popen[bytes]":
    """Profile a process for as long as the load lasts, into a file of this directory."""
    place = f"profile-{kind}-{connections}.txt"
    command = [py_spy, "record", "--nonblocking", "-d", str(SECONDS), "-r", "500", "-f", "raw", "-o", place]
    return subprocess.Popen(
        [*command, "-p", str(up.pids(kind)[0])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--requests", type=int, default=120_000)
    parser.add_argument("--profile", help="path of py-spy; writes a profile of the API process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        directory = Path(base)
        directory.chmod(0o755)
        async with running_up(directory / "data") as up:
            for connections in options.connections:
                drop_id = f"bench-{connections}"
                define(up, drop_id, options.requests)
                signer = GrabClient(up.url, up.key)
                requests = directory / "requests"
                with requests.open("wb") as file:
                    for number in range(options.requests):
                        raw = signer.grab_request(drop_id, f"p-{number:08d}", f"{drop_id}-{number:08d}")
                        file.write(b"%8d" % len(raw) + raw)
                spies = [
                    start_spy(options.profile, up, kind, connections)
                    for kind in ("api", "drain")
                    if options.profile
                ]
                before, count = cpu_us(up), issued(up, drop_id)
                report = await asyncio.to_thread(run_wrk, up, requests, directory / "wrk.lua", connections)
                await asyncio.sleep(0.5)
                after, count = cpu_us(up), issued(up, drop_id) - count
                for spy in spies:
                    spy.wait()
                latency = dict(re.findall(r"(50|99)%\s+(\S+)", report))
                non_2xx = re.search(r"Non-2xx.*", report)
                print(f"{connections} connections: {count / SECONDS:,.0f} confirmed/s, {latency}, {non_2xx}")
                for kind in KINDS:
                    print(f"  {kind:14} {(after[kind] - before[kind]) / max(count, 1):6.1f} µs per voucher")


asyncio.run(main())
