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
    failure_count: int = 0
    """Attempts that failed since the last one that did not."""
    held_until: str | None = None
    """While the receiver fails, nothing is tried before this."""
    previous_secret_until: str | None = None
    """Until then the secret before the present one signs, too."""


class Attempt(msgspec.Struct, frozen=True):
    """One attempt to deliver an event."""

    attempt_no: int
    attempted_at: str
    took_ms: int
    status: int | None
    """Of the receiver's answer; None: there was no complete one."""
    outcome: str
    """`delivered`, `failed` or `gone`."""
    error: str


class Delivery(msgspec.Struct, frozen=True):
    """What became of one event."""

    event_id: str
    state: str
    """`waiting`, `delivering`, `parked` or `delivered`."""
    type: str | None
    occurred_at: str | None
    next_attempt_at: str | None
    parked_because: str | None
    attempts: tuple[Attempt, ...]
    """The newest first."""


class DeliveryPage(msgspec.Struct, frozen=True):
    """One page of deliveries, the newest event first."""

    deliveries: tuple[Delivery, ...]
    next: str | None
    """The `before` of the next page; None on the last."""
