"""HTTP Message Signatures (RFC 9421) and Content-Digest (RFC 9530), for both sides of a request.

`verify` proves who sent a request and that nothing it covers was altered; `sign` makes the
headers that it checks. What must be covered is stricter than the RFC and fixed here:
`"@method"`, `"@path"`, `"@query"` where there is a query, `"content-digest"` where there is
a body. The algorithm belongs to the key, never to the request.
"""

from couponsvc.support.signing.digest import content_digest, digest_refusal
from couponsvc.support.signing.keys import (
    Ed25519Key,
    Ed25519SigningKey,
    HmacKey,
    SigningKey,
    VerifyingKey,
    WeakKey,
)
from couponsvc.support.signing.refusal import SignatureRefused, UnknownSigner
from couponsvc.support.signing.sign import sign
from couponsvc.support.signing.verify import FindKey, Request, combine, verify, verify_request

__all__ = [
    "Ed25519Key",
    "Ed25519SigningKey",
    "FindKey",
    "HmacKey",
    "Request",
    "SignatureRefused",
    "SigningKey",
    "UnknownSigner",
    "VerifyingKey",
    "WeakKey",
    "combine",
    "content_digest",
    "digest_refusal",
    "sign",
    "verify",
    "verify_request",
]
