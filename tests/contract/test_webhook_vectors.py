"""Webhooks as receivers in other languages check them: our verifiers agree with the vectors.

The vectors were made with nothing but `hmac` and `hashlib`, so that they check our reading of
Standard Webhooks and not our code against itself.
"""

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest

from couponsvc.client import BadWebhook, WebhookVerifier
from couponsvc.support.webhook_signature import sign

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "webhooks.json").read_text("utf-8")
)["vectors"]
GENUINE = [vector for vector in VECTORS if vector["genuine"]]


def name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


@pytest.mark.parametrize("vector", VECTORS, ids=name)
def test_a_vector_is_opened_or_refused_as_it_says(vector: dict[str, Any]) -> None:
    verifier = WebhookVerifier(vector["secrets"], clock=lambda: vector["now_s"])
    if vector["genuine"]:
        assert verifier.open(vector["headers"], vector["body"].encode()).id == vector["headers"]["webhook-id"]
    else:
        with pytest.raises(BadWebhook):
            verifier.open(vector["headers"], vector["body"].encode())


@pytest.mark.parametrize("vector", GENUINE, ids=name)
def test_a_vector_has_a_signature_over_what_it_says_was_signed(vector: dict[str, Any]) -> None:
    macs = {
        "v1,"
        + b64encode(
            hmac.new(b64decode(secret[6:]), vector["signed"].encode(), hashlib.sha256).digest()
        ).decode()
        for secret in vector["secrets"]
    }
    assert macs & set(vector["headers"]["webhook-signature"].split())


@pytest.mark.parametrize("vector", GENUINE, ids=name)
def test_we_sign_as_the_vector_does(vector: dict[str, Any]) -> None:
    headers = vector["headers"]
    ours = {
        sign([secret], headers["webhook-id"], int(headers["webhook-timestamp"]), vector["body"].encode())
        for secret in vector["secrets"]
    }
    assert ours & set(headers["webhook-signature"].split())


def test_what_is_refused_was_signed_by_somebody_or_lacks_a_part() -> None:
    """A refused vector differs from a good one in what its name says, and in nothing else."""
    good = GENUINE[0]
    for vector in VECTORS:
        if not vector["genuine"]:
            parts = ("headers", "body", "secrets")
            changed = [part for part in parts if vector[part] != good[part]]
            assert len(changed) == 1, vector["name"]
