"""One attempt: an event posted to an endpoint, signed with every live secret."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from couponsvc import __version__
from couponsvc.outbox import metrics
from couponsvc.outbox.endpoints import SecretBook
from couponsvc.outbox.leasing import Lease
from couponsvc.outbox.settling import Outcome, judge
from couponsvc.support import logs
from couponsvc.support.guarded_http import GuardedClient, PostResult
from couponsvc.support.guarded_url import TooManyLookUps
from couponsvc.support.sealing import CannotOpen
from couponsvc.support.webhook_signature import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from couponsvc.values.event import Event, event_id, subscription_id

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
USER_AGENT: Final = f"couponsvc/{__version__}"

_log = logs.get("couponsvc.outbox.attempting")


@dataclass(frozen=True, slots=True)
class Attempter:
    """Makes attempts. The client is not closed by it."""

    client: GuardedClient
    secrets: SecretBook
    clock: Callable[[], datetime]
    jitter: Callable[[], float]

    def secrets_for(self, lease: Lease, event: Event | None) -> list[str] | None:
        """What signs this event for this endpoint; None: this relay cannot send it, which is logged."""
        names = {
            "subscription_id": subscription_id(lease.subscription_no),
            "event_id": event_id(lease.event_no),
        }
        if event is None:
            _log.error("event not readable by this version, or not kept", **names)
            return None
        if event.partner_no != lease.partner_no:  # cannot be; persons would be told to a stranger
            _log.error("event of another partner", **names)
            return None
        try:
            return self.secrets.live(lease, self.clock())
        except CannotOpen:
            _log.error("secret cannot be opened: is this the master key?", **names)
            return None

    async def attempt(self, lease: Lease, event: Event, secrets: Sequence[str]) -> Outcome:
        """Post once, whatever becomes of it.

        Raises:
            couponsvc.support.guarded_url.TooManyLookUps: it was not attempted; the reason lies with us.
        """
        began_at = self.clock()
        try:
            result = await self.client.post(lease.url, _headers(event, secrets, began_at), event.body)
        except TooManyLookUps:
            raise
        except Exception:  # noqa: BLE001 - a fault of ours is an attempt that failed, told with its stack
            _log.exception("attempt failed here", subscription_id=subscription_id(lease.subscription_no))
            result = PostResult(None, "the relay could not send it", 0)
        ended_at = self.clock()
        outcome = judge(lease, began_at, result, ended_at, self.jitter())
        if outcome.kind == "delivered":
            metrics.lag_seconds.observe(max(0.0, ended_at.timestamp() - event.occurred_ms / 1000))
        return outcome


def _headers(event: Event, secrets: Sequence[str], began_at: datetime) -> dict[str, str]:
    """As Standard Webhooks and CloudEvents have them; the moment is the attempt's own."""
    timestamp_s = int(began_at.timestamp())
    return {
        "content-type": CONTENT_TYPE,
        "user-agent": USER_AGENT,
        ID_HEADER: event.event_id,
        TIMESTAMP_HEADER: str(timestamp_s),
        SIGNATURE_HEADER: sign(secrets, event.event_id, timestamp_s, event.body),
    }
