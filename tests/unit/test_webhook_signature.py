"""Webhook signatures agree with the Standard Webhooks library, both ways, and with its vectors."""

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from couponsvc.support import webhook_signature
from couponsvc.support.webhook_signature import (
    BadWebhookSecret,
    BadWebhookSignature,
    new_secret,
    sign,
    verify,
)

# The vector that the reference libraries of all languages share.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
SENT_S = 1_614_265_330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

OTHER = "whsec_" + base64.b64encode(bytes(32)).decode()
text_bodies = st.text().map(lambda text: text.encode("utf-8", "ignore"))


def headers(
    signature: str = SIGNATURE, sent_s: int | str = SENT_S, message_id: str = MESSAGE_ID
) -> dict[str, str]:
    return {"Webhook-Id": message_id, "WEBHOOK-TIMESTAMP": str(sent_s), "webhook-signature": signature}


def test_the_published_vector_is_signed_and_verified() -> None:
    assert sign([SECRET], MESSAGE_ID, SENT_S, BODY) == SIGNATURE
    verify([SECRET], headers(), BODY, now_s=SENT_S)


@given(body=text_bodies, key=st.binary(min_size=24, max_size=64))
def test_the_library_verifies_what_we_sign(body: bytes, key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    now_s = int(datetime.now(UTC).timestamp())
    signature = sign([OTHER, secret], "evt_1", now_s, body)
    given_headers = headers(signature, now_s, "evt_1")
    Webhook(secret).verify(body, given_headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", given_headers, json_parse=False)


@given(body=text_bodies, key=st.binary(min_size=24, max_size=64))
def test_we_verify_what_the_library_signs(body: bytes, key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    moment = datetime.fromtimestamp(SENT_S, UTC)
    signature = Webhook(secret).sign("evt_1", moment, body.decode())
    assert signature == sign([secret], "evt_1", SENT_S, body)
    verify([secret], headers(signature, SENT_S, "evt_1"), body, now_s=SENT_S)


def test_a_new_secret_is_random_and_the_library_takes_it() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(webhook_signature.secret_bytes(first)) == webhook_signature.SECRET_BYTES
    assert Webhook(first).sign("evt_1", datetime.fromtimestamp(SENT_S, UTC), "{}") == sign(
        [first], "evt_1", SENT_S, b"{}"
    )


def test_after_a_rotation_either_secret_verifies() -> None:
    signature = sign([OTHER, SECRET], MESSAGE_ID, SENT_S, BODY)
    assert len(signature.split(" ")) == 2
    for secret in (OTHER, SECRET):
        verify([secret], headers(signature), BODY, now_s=SENT_S)
    verify([new_secret(), SECRET], headers(), BODY, now_s=SENT_S)


@pytest.mark.parametrize("now_s", [SENT_S - 300, SENT_S + 300])
def test_a_clock_may_differ_by_the_tolerance(now_s: int) -> None:
    verify([SECRET], headers(), BODY, now_s=now_s)


@pytest.mark.parametrize(
    ("now_s", "reason"), [(SENT_S + 301, "too old"), (SENT_S - 301, "too far ahead: compare the clocks")]
)
def test_what_is_old_or_of_the_future_is_refused(now_s: int, reason: str) -> None:
    with pytest.raises(BadWebhookSignature, match=reason):
        verify([SECRET], headers(), BODY, now_s=now_s)


def test_what_was_altered_is_refused() -> None:
    altered = [
        (headers(), BODY + b"\n"),
        (headers(message_id="msg_other"), BODY),
        (headers(sent_s=SENT_S + 1), BODY),
        (headers("v1," + base64.b64encode(bytes(32)).decode()), BODY),
    ]
    for changed, body in altered:
        with pytest.raises(BadWebhookSignature, match="no signature is of this secret"):
            verify([SECRET], changed, body, now_s=SENT_S)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "v1",
        "v1,",
        "v1,not base64",
        SIGNATURE.replace("v1,", "v2,"),
        SIGNATURE.replace("v1,", "v1a,"),
        SIGNATURE.replace(",", " "),
        SIGNATURE[:-4],
        "v1,x " * 100,
        "v1,\u00e9",
    ],
)
def test_a_signature_of_another_form_is_refused(signature: str) -> None:
    with pytest.raises(BadWebhookSignature):
        verify([SECRET], headers(signature), BODY, now_s=SENT_S)


@pytest.mark.parametrize("sent_s", ["", "-1", "1614265330.5", "1_614_265_330", "\u0661", "9" * 16, "soon"])
def test_a_timestamp_of_another_form_is_refused(sent_s: str) -> None:
    with pytest.raises(BadWebhookSignature, match="not a whole number"):
        verify([SECRET], headers(sent_s=sent_s), BODY, now_s=SENT_S)


@pytest.mark.parametrize("missing", list(headers()))
def test_a_missing_header_is_named(missing: str) -> None:
    given_headers = headers()
    del given_headers[missing]
    with pytest.raises(BadWebhookSignature, match=missing.lower()):
        verify([SECRET], given_headers, BODY, now_s=SENT_S)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_",
        "whsec_AAAA",
        "whsec_?fKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_\u00e9",
    ],
)
def test_a_weak_or_misread_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(BadWebhookSecret) as refusal:
        sign([secret], MESSAGE_ID, SENT_S, BODY)
    assert secret.removeprefix("whsec_") == "" or secret.removeprefix("whsec_") not in str(refusal.value)
    with pytest.raises(BadWebhookSecret):
        sign([], MESSAGE_ID, SENT_S, BODY)
