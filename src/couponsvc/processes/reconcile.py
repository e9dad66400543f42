"""`couponsvc reconcile`: checks Redis against Postgres, and rebuilds it where it was lost."""

import asyncio

from couponsvc.settings import Settings


async def run_reconcile(settings: Settings, stop: asyncio.Event) -> None:
    """Check and repair until `stop` is set."""
    from couponsvc.reconcile.reconciler import Reconciler  # noqa: PLC0415 - each process loads its own stage

    reconciler = await Reconciler.open(settings)
    try:
        await reconciler.run(stop)
    finally:
        await reconciler.close()
