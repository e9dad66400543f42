"""A small client of the HTTP API, for partners' tests, load generators and operators' tools.

`GrabClient` is the fast one: it signs, keeps connections open, and costs tens of microseconds
of CPU per grab. `ApiClient` is the plain one, for everything that operators do. Neither imports
anything of the service but `support.signing`, so both can be copied out.
"""

from couponsvc.client.answers import Answer, Refusal, Voucher
from couponsvc.client.connection import Unreachable
from couponsvc.client.credentials import Credentials, CredentialsError, read_credentials
from couponsvc.client.grabbing import GrabClient
from couponsvc.client.operating import ApiClient, ApiRefused
from couponsvc.client.retrying import ONCE, PATIENT, Retries, grab_until_answered

__all__ = [
    "ONCE",
    "PATIENT",
    "Answer",
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
