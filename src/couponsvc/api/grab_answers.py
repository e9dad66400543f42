"""One total table from a grab's final answer to status, headers and body."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import msgspec

from couponsvc.api.grab_body import GrabBody
from couponsvc.api.problems import MEDIA_TYPE, RETRY_AFTER_S, render_problem
from couponsvc.programs.catalog import Listing
from couponsvc.values.answer import Answer, AnswerKind
from couponsvc.values.moment import rfc3339
from couponsvc.values.rate import Rate
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


def _plain(
    code: str, detail: str | None = None, *, retryable: bool | None = None
) -> tuple[int, bytes, Headers]:
    """A refusal of which only the number, its last member, differs: status, all before it, headers."""
    status, body = render_problem(code, detail=detail, retryable=retryable, out_request_no="")
    return status, body.removesuffix(_END), problem_headers(status)


_END: Final = b'"}'
_PENDING_DETAIL: Final = "Nothing is available, but grants are pending and one may come back; ask again soon."
_PLAIN: Final[dict[AnswerKind, tuple[int, bytes, Headers]]] = {
    AnswerKind.SOLD_OUT: _plain("sold_out"),
    AnswerKind.SOLD_OUT_PENDING: _plain("sold_out", _PENDING_DETAIL, retryable=True),
    AnswerKind.MISMATCH: _plain("request_mismatch"),
    AnswerKind.ENDED: _plain("ended"),
    AnswerKind.PAUSED: _plain("paused"),
    AnswerKind.OVERLOADED: _plain("overloaded"),
    AnswerKind.RATE_LIMITED: _plain("rate_limited"),
    AnswerKind.LOST: _plain("gate_unavailable"),
    AnswerKind.AGAIN: _plain("gate_unavailable"),
}
"""Written once: when a million people are told the same, writing it is what costs."""


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
            plain = _PLAIN.get(answer.kind)
            if plain is not None:
                status, begin, headers = plain  # a number has no character that JSON escapes
                return status, b"%b%b%b" % (begin, asked.out_request_no.encode(), _END), headers
            status, body = _refusal(answer, listing, asked)
            return status, body, problem_headers(status)


_RATE_LIMITED: Final = render_problem("rate_limited")


@lru_cache(maxsize=256)
def rate_refusal(rate: Rate, wait_s: int) -> Reply:
    """What a partner is told whose rate is used up, for so many whole seconds.

    Fields as in draft-ietf-httpapi-ratelimit-headers; `Retry-After` is the one to follow.
    """
    status, body = _RATE_LIMITED
    headers = (
        *_PROBLEM,
        (b"retry-after", b"%d" % wait_s),
        (b"ratelimit-policy", b'"grabs";q=%d;w=1' % rate.per_second),
        (b"ratelimit", b'"grabs";r=0;t=%d' % wait_s),
    )
    return status, body, headers


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


def _refusal(answer: Answer, listing: Listing, asked: GrabBody) -> tuple[int, bytes]:
    """A refusal that says more than the number."""
    number = asked.out_request_no
    if answer.kind is AnswerKind.PERSON_LIMIT and answer.seq:
        held = msgspec.Raw(_voucher(answer, listing, asked))
        return render_problem("person_limit", out_request_no=number, voucher=held)
    if answer.kind is AnswerKind.PERSON_LIMIT:
        detail = "The person's voucher is being issued; ask again soon to see it."
        return render_problem("person_limit", detail=detail, retryable=True, out_request_no=number)
    if answer.kind is AnswerKind.NOT_STARTED:
        opens_at = rfc3339(answer.moment_ms)
        return render_problem("not_started", out_request_no=number, opens_at=opens_at, resets_at=opens_at)
    if answer.kind is AnswerKind.CLOSED:
        return render_problem(answer.reason, out_request_no=number)
    raise AssertionError(f"{answer.kind!r} has no answer")
