"""Signatures as others make them: RFC 9421's own examples, and requests with the base that was signed.

The vectors were made with nothing but `hmac`, `hashlib` and an Ed25519 primitive, so that
they check our reading of the RFC and not our code against itself.
"""

import hashlib
import hmac
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from couponsvc.support.signing import (
    Ed25519Key,
    Ed25519SigningKey,
    HmacKey,
    SignatureRefused,
    VerifyingKey,
    content_digest,
    verify,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "signatures.json").read_text("utf-8")
)


def _key(key_id: str, record: dict[str, str]) -> VerifyingKey:
    if record["algorithm"] == "ed25519":
        return Ed25519Key(key_id, b64decode(record["public_key"]))
    return HmacKey(key_id, b64decode(record["secret"]))


KEYS = {key_id: _key(key_id, record) for key_id, record in VECTORS["keys"].items()}


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_a_vector_is_answered_as_it_says(vector: dict[str, Any]) -> None:
    request = vector["request"]

    def check() -> str:
        return verify(
            request["method"],
            request["path"].encode(),
            request["query"].encode(),
            [(name.encode(), value.encode()) for name, value in request["headers"]],
            request["body"].encode(),
            KEYS.get,
            vector["now_s"],
            request["scheme"].encode(),
        )

    for _ in range(2):  # the second time by what was remembered
        if "verified" in vector:
            assert check() == vector["verified"]
        else:
            with pytest.raises(SignatureRefused, match=vector["refused"]):
                check()


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_a_vector_s_signature_is_that_of_its_base(vector: dict[str, Any]) -> None:
    record = VECTORS["keys"][vector["signed_with"]]
    base = vector["signature_base"].encode()
    if record["algorithm"] == "ed25519":
        expected = Ed25519SigningKey("", b64decode(record["private_key"])).sign(base)
    else:
        expected = hmac.new(b64decode(record["secret"]), base, hashlib.sha256).digest()
    signatures = dict(vector["request"]["headers"])["signature"]
    assert expected in [b64decode(part.split(":")[1]) for part in signatures.split(", ")]


RFC_SECRET = b64decode(
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)


def test_rfc_9421_b_2_5_hmac_sha256() -> None:
    base = (
        b'"date": Tue, 20 Apr 2021 02:07:55 GMT\n'
        b'"@authority": example.com\n'
        b'"content-type": application/json\n'
        b'"@signature-params": ("date" "@authority" "content-type")'
        b';created=1618884473;keyid="test-shared-secret"'
    )
    signature = b64decode("pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=")
    key = HmacKey("test-shared-secret", RFC_SECRET)
    assert key.sign(base) == signature
    assert key.verifies(base, signature)


RFC_REQUEST = [
    (b"host", b"example.com"),
    (b"date", b"Tue, 20 Apr 2021 02:07:55 GMT"),
    (b"content-type", b"application/json"),
    (b"content-length", b"18"),
    (
        b"signature-input",
        (
            b'sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length")'
            b';created=1618884473;keyid="test-key-ed25519"'
        ),
    ),
    (
        b"signature",
        b"sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
    ),
]


def test_rfc_9421_b_2_6_ed25519_verifies_where_it_covers_enough() -> None:
    assert verify("POST", b"/foo", b"", RFC_REQUEST, b"", KEYS.get, 1618884473) == "test-key-ed25519"


@pytest.mark.parametrize(
    ("query", "body"), [(b"param=Value&Pet=dog", b""), (b"", b'{"hello": "world"}')], ids=["query", "body"]
)
def test_rfc_9421_b_2_6_is_refused_where_it_leaves_something_open(query: bytes, body: bytes) -> None:
    with pytest.raises(SignatureRefused, match="not covered"):
        verify("POST", b"/foo", query, RFC_REQUEST, body, KEYS.get, 1618884473)


def test_rfc_9530_digest() -> None:
    assert (
        content_digest(b'{"hello": "world"}\n') == b"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    )
