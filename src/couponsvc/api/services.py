"""Everything a request needs, made once per process and handed to the application."""

from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg
from redis.asyncio import Redis

from couponsvc.api.auth import Authenticator
from couponsvc.ledger.reading import PendingView
from couponsvc.programs.catalog import DropCatalog
from couponsvc.settings import Settings
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

    def __post_init__(self) -> None:
        """Derive the rest."""
        object.__setattr__(self, "pending", PendingView(self.redis, self.settings.shard))
        key = MasterKey.from_base64(self.settings.master_key.get_secret_value())
        object.__setattr__(self, "master_key", key)
