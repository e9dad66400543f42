"""One client process of the demo: `python -m couponsvc.demo.crowd`.

Reads one `CrowdPlan` from standard input, writes `Progress` lines to standard output and all
presses to a file in the end. Standard input stays open: when it closes, whoever started this
process is gone and so is it.
"""

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from pathlib import Path

import msgspec
import uvloop

from couponsvc.client import GrabClient, Unreachable
from couponsvc.client.credentials import signing_key
from couponsvc.demo.person import People
from couponsvc.demo.plan import PROGRESS_EVERY_S, CrowdPlan, Progress
from couponsvc.demo.records import write_presses

READY = b"ready\n"


def main() -> None:
    """Run until everybody has been answered."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    plan = msgspec.json.decode(line, type=CrowdPlan)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()
    gc.disable()  # hundreds of thousands of small records, no cycles worth looking for
    try:
        uvloop.run(_run(plan))
    except Unreachable as error:
        sys.exit(f"couponsvc: demo: {error}")


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not the buffered reader: its lock would outlive this thread
        pass
    os._exit(1)


async def _run(plan: CrowdPlan) -> None:
    key = signing_key(plan.key_id, plan.secret)
    async with GrabClient(plan.base_url, key, connections_max_count=plan.connections_count) as client:
        people = People(client, plan)
        began_s = time.process_time()
        telling = asyncio.create_task(_tell(client, people, began_s))
        try:
            await people.rush()
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
        cpu_s = time.process_time() - began_s
        write_presses(Path(plan.records_path), people.presses)
        _say(Progress(client.requests_count, people.outcomes, cpu_s, finished=True))


async def _tell(client: GrabClient, people: People, began_s: float) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        cpu_s = time.process_time() - began_s
        _say(Progress(client.requests_count, people.outcomes, cpu_s, finished=False))


def _say(progress: Progress) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(progress) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
