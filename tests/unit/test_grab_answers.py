"""Every kind of answer has its reply, and those written beforehand say what the catalogue says."""

import msgspec
import pytest

from couponsvc.api.grab_answers import problem_headers, reply
from couponsvc.api.grab_body import GrabBody
from couponsvc.api.problems import CATALOGUE
from couponsvc.programs.catalog import Listing
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms

TERMS = VoucherTerms(2000, 6000, 3_600_000)
LISTING = Listing(Drop(7, "d", "p", "t", "", 0, 1, 1, DropStatus.ACTIVE, 10, 1, 0, 1, TERMS, frozenset({1})))
ASKED = GrabBody("p-1", "A-z_9|*@.:")
CODES = {
    AnswerKind.SOLD_OUT: "sold_out",
    AnswerKind.SOLD_OUT_PENDING: "sold_out",
    AnswerKind.PERSON_LIMIT: "person_limit",
    AnswerKind.MISMATCH: "request_mismatch",
    AnswerKind.NOT_STARTED: "not_started",
    AnswerKind.ENDED: "ended",
    AnswerKind.PAUSED: "paused",
    AnswerKind.OVERLOADED: "overloaded",
    AnswerKind.RATE_LIMITED: "rate_limited",
    AnswerKind.CLOSED: "rebuilding",
    AnswerKind.LOST: "gate_unavailable",
    AnswerKind.AGAIN: "gate_unavailable",
}
RETRYABLE_THOUGH_THE_CATALOGUE_SAYS_NO = {AnswerKind.SOLD_OUT_PENDING, AnswerKind.PERSON_LIMIT}


@pytest.mark.parametrize("kind", AnswerKind)
def test_every_kind_has_its_answer(kind: AnswerKind) -> None:
    status, body, headers = reply(Answer(kind, reason="rebuilding"), LISTING, ASKED)
    said = msgspec.json.decode(body)
    assert said["out_request_no"] == ("" if kind <= AnswerKind.REPEATED else ASKED.out_request_no)
    if kind not in CODES:
        assert status == {"CONFIRMED": 201, "REPEATED": 200, "PENDING": 202}[kind.name]
        return
    problem = CATALOGUE[CODES[kind]]
    assert (status, said["status"], said["code"]) == (problem.status, problem.status, problem.code)
    assert said["retryable"] is (problem.retryable or kind in RETRYABLE_THOUGH_THE_CATALOGUE_SAYS_NO)
    assert said["detail"]
    assert headers == problem_headers(status)
