"""A typed client of the HTTP API: for partners, load generators and operators' tools.

`PartnerClient` and `AsyncPartnerClient` are for partners: grabs that are safely asked again, look-ups,
subscriptions, the feed. `WebhookVerifier` opens what webhooks bring. `GrabClient` is the fast one for
grabs: it signs, keeps connections open, and costs tens of microseconds of CPU per grab. `ApiClient` is
the plain one, for everything that operators do. None imports anything of the service but
`support.signing` and `support.webhook_signature`, so all of them can be copied out.
"""

from couponsvc.client.answers import Answer, ApiRefused, Refusal, Voucher
from couponsvc.client.calls import Drop
from couponsvc.client.connection import Unreachable
from couponsvc.client.credentials import Credentials, CredentialsError, read_credentials
from couponsvc.client.driving import grab_until_answered
from couponsvc.client.events import (
    BEGINNING,
    DROP_CLOSED,
    DROP_DEFINED,
    DROP_ENDED,
    DROP_OPENED,
    DROP_PAUSED,
    DROP_RESTOCKED,
    DROP_RESUMED,
    DROP_SOLD_OUT,
    DROP_WITHDRAWN,
    EVENT_TYPES,
    VOUCHER_ISSUED,
    WEBHOOK_TEST,
    Event,
    EventPage,
    IssuedVouchers,
    MalformedEvent,
)
from couponsvc.client.grabbing import GrabClient
from couponsvc.client.operating import ApiClient
from couponsvc.client.partner import AsyncPartnerClient, PartnerClient
from couponsvc.client.retrying import ONCE, PATIENT, RELENTLESS, AnswerLost, Retries
from couponsvc.client.subscriptions import (
    Attempt,
    Delivery,
    DeliveryPage,
    NewSubscription,
    RotatedSecret,
    Subscription,
)
from couponsvc.client.webhooks import BadWebhook, WebhookVerifier

__all__ = [
    "BEGINNING",
    "DROP_CLOSED",
    "DROP_DEFINED",
    "DROP_ENDED",
    "DROP_OPENED",
    "DROP_PAUSED",
    "DROP_RESTOCKED",
    "DROP_RESUMED",
    "DROP_SOLD_OUT",
    "DROP_WITHDRAWN",
    "EVENT_TYPES",
    "ONCE",
    "PATIENT",
    "RELENTLESS",
    "VOUCHER_ISSUED",
    "WEBHOOK_TEST",
    "Answer",
    "AnswerLost",
    "ApiClient",
    "ApiRefused",
    "AsyncPartnerClient",
    "Attempt",
    "BadWebhook",
    "Credentials",
    "CredentialsError",
    "Delivery",
    "DeliveryPage",
    "Drop",
    "Event",
    "EventPage",
    "GrabClient",
    "IssuedVouchers",
    "MalformedEvent",
    "NewSubscription",
    "PartnerClient",
    "Refusal",
    "Retries",
    "RotatedSecret",
    "Subscription",
    "Unreachable",
    "Voucher",
    "WebhookVerifier",
    "grab_until_answered",
    "read_credentials",
]
