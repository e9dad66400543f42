"""Relays on a real ledger, with a clock that a test moves."""

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from couponsvc.outbox.relay import Relay, utc_now
from couponsvc.settings import Settings


class Clock:
    """Stands still until it is moved."""

    def __init__(self, moment: datetime | None = None) -> None:
        self.moment = moment or datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.moment

    def move(self, **step: float) -> None:
        self.moment += timedelta(**step)


@contextlib.asynccontextmanager
async def opened(
    settings: Settings,
    clock: Callable[[], datetime] = utc_now,
    jitter: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Relay]:
    """A relay that may deliver to loopback; closed at the end."""
    private = settings.model_copy(update={"webhook_allow_private": True})
    relay = await Relay.open(private, clock=clock, jitter=jitter)
    try:
        yield relay
    finally:
        await relay.close()
