"""Both directions against `http-message-signatures`, an independent implementation of RFC 9421."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, MappingKeyResolver
from http_message_signatures.algorithms import ED25519, HMAC_SHA256

from couponsvc.support.signing import SigningKey, sign
from tests.unit.grab_request import HMAC, PRIVATE, SECRET, GrabRequest

RESOLVER = MappingKeyResolver(
    public_keys={
        "bank-a-1": SECRET,
        "bank-a-2": Ed25519PublicKey.from_public_bytes(PRIVATE.public_key),
    },
    private_keys={
        "bank-a-1": SECRET,
        "bank-a-2": Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64))),
    },
)
ALGORITHMS = {"hmac-sha256": HMAC_SHA256, "ed25519": ED25519}
BOTH = pytest.mark.parametrize("key", [HMAC, PRIVATE], ids=lambda key: key.algorithm)


@dataclass
class Message:
    """A request as the other implementation wants it."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)


def message_of(request: GrabRequest) -> Message:
    target = request.raw_path.decode() + (f"?{request.query.decode()}" if request.query else "")
    headers = {name.decode(): value.decode() for name, value in request.headers}
    return Message(request.method.decode(), f"https://{headers['host']}{target}", headers)


def signed_by_them(
    request: GrabRequest,
    key: SigningKey,
    covered: Sequence[str],
    *,
    label: str | None = None,
    nonce: str | None = None,
    tag: str | None = None,
    include_alg: bool = True,
    append: bool = False,
) -> GrabRequest:
    message = message_of(request)
    HTTPMessageSigner(signature_algorithm=ALGORITHMS[key.algorithm], key_resolver=RESOLVER).sign(
        message,
        key_id=key.key_id,
        created=datetime.now(UTC),
        label=label,
        nonce=nonce,
        tag=tag,
        include_alg=include_alg,
        covered_component_ids=covered,
        append_if_signature_exists=append,
        body=request.body or None,
        use_existing_digest="content-digest" in message.headers,
    )
    headers = [(name.lower().encode(), value.encode()) for name, value in message.headers.items()]
    return replace(request, headers=headers)


@BOTH
@pytest.mark.parametrize(
    "covered",
    [
        ("@method", "@path"),
        ("@authority", "@path", "content-type", "@method"),
        ("@method", "@path", "@query", "@target-uri", "@scheme", "@request-target", "host"),
    ],
    ids=["least", "more", "most"],
)
def test_they_sign_and_we_verify(key: SigningKey, covered: Sequence[str]) -> None:
    request = signed_by_them(GrabRequest(), key, covered)
    assert request.verify(time()) == key.key_id
    assert signed_by_them(
        GrabRequest(), key, covered, label="l-1", nonce='q"u\\o;te', tag="grab", include_alg=False
    ).verify(time())


@BOTH
def test_they_sign_a_query_and_we_verify(key: SigningKey) -> None:
    request = GrabRequest(
        method=b"GET", raw_path=b"/v1/vouchers", query=b"drop_id=d&person_token=a%2Bb", body=b""
    )
    assert signed_by_them(request, key, ("@method", "@path", "@query")).verify(time()) == key.key_id


def test_they_sign_twice_and_we_accept_either() -> None:
    covered = ("@method", "@path")
    once = signed_by_them(GrabRequest(), PRIVATE, covered, label="one", tag="a")
    twice = signed_by_them(once, HMAC, (*covered, "content-digest"), label="two", tag="b", append=True)
    assert twice.header(b"signature-input").count(b";created=") == 2
    assert twice.verify(time()) == "bank-a-2"
    assert twice.verify(time(), keys={"bank-a-1": HMAC}) == "bank-a-1"


@BOTH
@pytest.mark.parametrize(
    "request_",
    [
        GrabRequest(),
        GrabRequest(method=b"GET", raw_path=b"/v1/drops/d-1/grabs/a%7Cb", query=b"x=1&y=%20", body=b""),
        GrabRequest(method=b"DELETE", raw_path=b"/v1/subscriptions/1", body=b""),
    ],
    ids=["grab", "query", "bare"],
)
def test_we_sign_and_they_verify(key: SigningKey, request_: GrabRequest) -> None:
    covered = [(b"content-type", b"application/json")]
    added = sign(
        key,
        request_.method,
        request_.raw_path,
        request_.query,
        request_.body,
        created_s=int(time()),
        covered=covered,
        nonce="n-1",
    )
    message = message_of(replace(request_, headers=[*request_.headers, *added]))
    verifier = HTTPMessageVerifier(signature_algorithm=ALGORITHMS[key.algorithm], key_resolver=RESOLVER)
    required = ["@method", "@path", "content-type"]
    required += ["@query"] if request_.query else []
    required += ["content-digest"] if request_.body else []
    (result,) = verifier.verify(message, require_components=required, body=request_.body or None)
    assert result.parameters["keyid"] == key.key_id
    assert result.parameters["nonce"] == "n-1"
