"""`couponsvc drain`: takes grants off the stream and writes them to Postgres."""

import asyncio

from couponsvc.settings import Settings


async def run_drain(settings: Settings, stop: asyncio.Event) -> None:
    """Drain until `stop` is set; what was read is finished first."""
    from couponsvc.ledger.drainer import Drainer  # noqa: PLC0415 - each process loads its own stage only

    drainer = await Drainer.open(settings)
    try:
        await drainer.run(stop)
    finally:
        await drainer.close()
