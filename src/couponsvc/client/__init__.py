"""A typed client of the HTTP API: for partners, load generators and operators' tools.

`PartnerClient` and `AsyncPartnerClient` are for partners: grabs that are safely asked again, look-ups,
subscriptions, the feed. `WebhookVerifier` opens what webhooks bring. `GrabClient` is the fast one for
grabs: it signs, keeps connections open, and costs tens of microseconds of CPU per grab. `ApiClient` is
the plain one, for everything that operators do. None imports anything of the service but
`support.signing` and `support.webhook_signature`, so all of them can be copied out.
"""

from couponsvc.client.answers import Answer, ApiRefused, Refusal, Voucher
from couponsvc.client.connection import Unreachable
from couponsvc.client.credentials import Credentials, CredentialsError, read_credentials
from couponsvc.client.driving import grab_until_answered
from couponsvc.client.grabbing import GrabClient
from couponsvc.client.operating import ApiClient
from couponsvc.client.retrying import ONCE, PATIENT, RELENTLESS, AnswerLost, Retries

__all__ = [
    "ONCE",
    "PATIENT",
    "RELENTLESS",
    "Answer",
    "AnswerLost",
    "ApiClient",
    "ApiRefused",
    "Credentials",
    "CredentialsError",
    "GrabClient",
    "Refusal",
    "Retries",
    "Unreachable",
    "Voucher",
    "grab_until_answered",
    "read_credentials",
]
