"""Everything a request needs, made once per process and handed to the application."""

from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg
from redis.asyncio import Redis

from couponsvc.api.auth import Authenticator
from couponsvc.api.event_waiting import EventWaits
from couponsvc.ledger.reading import PendingView
from couponsvc.outbox.reading import EventReader
from couponsvc.programs.catalog import DropCatalog
from couponsvc.settings import Settings
from couponsvc.support.public_addresses import AddressPolicy
from couponsvc.support.sealing import MasterKey


@dataclass(frozen=True, slots=True)
class Services:
    """What the API works with. Whoever makes it also closes it.

    Raises:
        couponsvc.support.sealing.BadMasterKey: settings hold no usable master key.
    """

    settings: Settings
    pool: "asyncpg.Pool[asyncpg.Record]"
    redis: Redis
    """For look-ups and definitions, without retries; grabs have their own connection."""
    authenticator: Authenticator
    catalog: DropCatalog
    gate_closed_because: Callable[[], str | None]
    """Why no grab can be decided at present, or None."""
    pending: PendingView = field(init=False)
    """Looks for grants on the stream that are not committed yet."""
    master_key: MasterKey = field(init=False)
    events: EventReader = field(init=False)
    event_waits: EventWaits = field(init=False)
    """Wakes readers of the feed, while somebody runs it."""
    webhook_policy: AddressPolicy = field(init=False)
    """Which addresses a subscription's URL may lead to."""

    def __post_init__(self) -> None:
        """Derive the rest."""
        object.__setattr__(self, "pending", PendingView(self.redis, self.settings.shard))
        key = MasterKey.from_base64(self.settings.master_key.get_secret_value())
        object.__setattr__(self, "master_key", key)
        object.__setattr__(self, "events", EventReader(self.pool))
        dsn = self.settings.postgres_dsn.get_secret_value()
        object.__setattr__(self, "event_waits", EventWaits(dsn, self.authenticator.is_live))
        policy = AddressPolicy(allow_private=self.settings.webhook_allow_private)
        object.__setattr__(self, "webhook_policy", policy)
