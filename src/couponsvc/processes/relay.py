"""`couponsvc relay`: tells partners what was committed, by webhook, feed and broker."""

import asyncio
import os

from couponsvc.processes.running import EXIT_USAGE, ProcessFailed
from couponsvc.settings import Settings


async def run_relay(settings: Settings, stop: asyncio.Event) -> None:
    """Number and deliver until `stop` is set; what is under way may end first, within seconds.

    Raises:
        ProcessFailed: a broker is configured whose client is not installed.
    """
    from couponsvc.outbox.relay import Relay  # noqa: PLC0415 - each process loads its own stage only
    from couponsvc.outbox.sinks.sink import ExtraMissing  # noqa: PLC0415

    try:
        relay = await Relay.open(settings)
    except ExtraMissing as missing:
        raise ProcessFailed(str(missing), EXIT_USAGE) from missing
    try:
        await relay.run(stop)
    finally:
        await relay.close()


def yield_to_others(niceness: int) -> None:
    """Take a place behind the other processes of this machine: events may be late, grabs may not."""
    os.nice(niceness)
