"""What the API tells a partner of its subscriptions and their deliveries."""

import msgspec


class NewSubscription(msgspec.Struct, frozen=True):
    """A subscription that was made. Keep the secret: it is shown this once."""

    subscription_id: str
    secret: str
    """`whsec_…`, for `WebhookVerifier`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.subscription_id!r})"


class RotatedSecret(NewSubscription, frozen=True):
    """A new secret. Until `previous_secret_until` the old one signs beside it."""

    previous_secret_until: str


class Subscription(msgspec.Struct, frozen=True):
    """A subscription as it stands."""

    subscription_id: str
    url: str
    types: tuple[str, ...]
    drop_ids: tuple[str, ...] | None = None
    """None: every drop of the partner, present and future."""
    created_at: str = ""
    disabled_at: str | None = None
    """When the receiver answered 410; it gets nothing since."""
