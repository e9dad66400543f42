"""What the benches of events count is what came."""

import json
import time

import pytest
from bench.events.figure import Figure
from bench.events.receiver import ANSWER, REFUSAL, Inbox

from couponsvc.support.webhook_signature import new_secret, sign
from couponsvc.values.moment import rfc3339

SECRET = new_secret()


def webhook(
    event_no: int, seqs: range, *, age_ms: int = 0, secret: str = SECRET
) -> tuple[dict[str, str], bytes]:
    now_s = time.time()
    issued_at = rfc3339(int(now_s * 1000) - age_ms)
    vouchers = [{"seq": seq, "issued_at": issued_at} for seq in seqs]
    body = json.dumps({"id": f"evt_{event_no}", "data": {"drop_id": "d", "vouchers": vouchers}}).encode()
    signature = sign([secret], f"evt_{event_no}", int(now_s), body)
    headers = {"webhook-id": f"evt_{event_no}", "webhook-timestamp": str(int(now_s))}
    return headers | {"webhook-signature": signature}, body


@pytest.fixture
def inbox() -> Inbox:
    inbox = Inbox()
    inbox.secrets.append(SECRET)
    return inbox


def test_vouchers_are_counted_once_with_their_age(inbox: Inbox) -> None:
    assert inbox.take(*webhook(1, range(1, 100), age_ms=200)) == ANSWER
    assert inbox.take(*webhook(1, range(1, 100), age_ms=200)) == ANSWER
    assert inbox.take(*webhook(2, range(100, 101), age_ms=5_000)) == ANSWER
    report = inbox.report()
    assert (report["events"], report["vouchers"], report["repeated"]) == (2, 100, 1)
    assert (report["refused"], report["missing"]) == (0, 0)
    assert report["p50_ms"] == pytest.approx(200, abs=50)
    assert report["p99_ms"] == pytest.approx(200, abs=50), "99 of 100 vouchers were no older"
    assert report["max_ms"] == pytest.approx(5_000, abs=50)


def test_what_is_not_signed_as_agreed_is_refused_and_not_counted(inbox: Inbox) -> None:
    headers, body = webhook(1, range(1, 10))
    assert inbox.take(headers, body + b" ") == REFUSAL
    assert inbox.take(*webhook(2, range(1, 10), secret=new_secret())) == REFUSAL
    assert inbox.report()["refused"] == 2
    assert inbox.vouchers == 0


def test_a_number_that_never_came_is_missing_until_it_comes(inbox: Inbox) -> None:
    inbox.take(*webhook(1, range(1, 5)))
    inbox.take(*webhook(3, range(8, 11)))
    assert inbox.report()["missing"] == 3
    inbox.take(*webhook(2, range(5, 8)))
    assert inbox.report()["missing"] == 0


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (0.9, {"at_least": 0.9}, "met"),
        (0.89, {"at_least": 0.9}, "MISSED"),
        (1.5, {"at_most": 1.5}, "met"),
        (1.51, {"at_most": 1.5}, "MISSED"),
        (7, {}, ""),
    ],
)
def test_a_figure_is_judged_by_its_bound(value: float, bound: dict[str, float], verdict: str) -> None:
    figure = Figure("name", value, "", "detail", **bound)
    assert figure.verdict == verdict
    assert figure.line().startswith(verdict)
