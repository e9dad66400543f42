"""One total table from a grab's final answer to status, headers and body."""

from collections.abc import Sequence
from typing import Final, assert_never
from urllib.parse import quote

import msgspec

from couponsvc.api.grab_body import GrabBody
from couponsvc.api.problems import MEDIA_TYPE, RETRY_AFTER_S, render_problem
from couponsvc.programs.catalog import Listing
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.moment import rfc3339
from couponsvc.values.voucher import Issued

Headers = Sequence[tuple[bytes, bytes]]
Reply = tuple[int, bytes, Headers]

JSON: Final[Headers] = ((b"content-type", b"application/json"),)
_PROBLEM: Final[Headers] = ((b"content-type", MEDIA_TYPE.encode()),)
_UNAUTHENTICATED: Final[Headers] = (
    *_PROBLEM,
    (b"www-authenticate", b'Signature, Bearer realm="couponsvc"'),
)
_LATER: Final[Headers] = (*_PROBLEM, (b"retry-after", b"%d" % RETRY_AFTER_S))


def problem_headers(status: int) -> Headers:
    """Headers of a problem by its status."""
    match status:
        case 401:
            return _UNAUTHENTICATED
        case 429 | 503:
            return _LATER
        case _:
            return _PROBLEM


def reply(answer: Answer, listing: Listing, asked: GrabBody) -> Reply:
    """What is sent for `answer`: status, body, headers."""
    match answer.kind:
        case AnswerKind.CONFIRMED:
            return 201, _voucher(answer, listing, asked), JSON
        case AnswerKind.REPEATED:
            return 200, _voucher(answer, listing, asked), JSON
        case AnswerKind.PENDING:
            return _pending(listing, asked)
        case _:
            status, body = _refusal(answer, listing, asked)
            return status, body, problem_headers(status)


def _voucher(answer: Answer, listing: Listing, asked: GrabBody) -> bytes:
    return listing.receipt.render(
        Issued(asked.person_token, answer.out_request_no, answer.seq, answer.issued_ms, answer.code)
    )


def _pending(listing: Listing, asked: GrabBody) -> Reply:
    drop_id = listing.drop.drop_id
    body = msgspec.json.encode(
        {"status": "pending", "drop_id": drop_id, "out_request_no": asked.out_request_no}
    )
    location = f"/v1/drops/{drop_id}/grabs/{quote(asked.out_request_no, safe='@*:')}"
    return 202, body, (*JSON, (b"location", location.encode()))


def _refusal(  # noqa: C901, PLR0911, PLR0912 - one row per member
    answer: Answer, listing: Listing, asked: GrabBody
) -> tuple[int, bytes]:
    number = asked.out_request_no
    match answer.kind:
        case AnswerKind.SOLD_OUT:
            return render_problem("sold_out", out_request_no=number)
        case AnswerKind.SOLD_OUT_PENDING:
            return render_problem(
                "sold_out",
                detail="Nothing is available, but grants are pending and one may come back; ask again soon.",
                retryable=True,
                out_request_no=number,
            )
        case AnswerKind.PERSON_LIMIT if answer.seq:
            held = msgspec.Raw(_voucher(answer, listing, asked))
            return render_problem("person_limit", out_request_no=number, voucher=held)
        case AnswerKind.PERSON_LIMIT:
            return render_problem(
                "person_limit",
                detail="The person's voucher is being issued; ask again soon to see it.",
                retryable=True,
                out_request_no=number,
            )
        case AnswerKind.MISMATCH:
            return render_problem("request_mismatch", out_request_no=number)
        case AnswerKind.NOT_STARTED:
            opens_at = rfc3339(answer.moment_ms)
            return render_problem("not_started", out_request_no=number, opens_at=opens_at, resets_at=opens_at)
        case AnswerKind.ENDED:
            return render_problem("ended", out_request_no=number)
        case AnswerKind.PAUSED:
            return render_problem("paused", out_request_no=number)
        case AnswerKind.OVERLOADED:
            return render_problem("overloaded", out_request_no=number)
        case AnswerKind.CLOSED:
            return render_problem(answer.reason, out_request_no=number)
        case AnswerKind.LOST | AnswerKind.AGAIN:
            return render_problem("gate_unavailable", out_request_no=number)
        case AnswerKind.CONFIRMED | AnswerKind.REPEATED | AnswerKind.PENDING:
            raise AssertionError(f"{answer.kind} is not a refusal")
        case _:
            assert_never(answer.kind)
