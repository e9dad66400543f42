"""The catalogue of problems (RFC 9457): every error answer of the API is one of these.

docs/errors.md has a section for each; tests/contract compares the two.
"""

from typing import Final, NamedTuple

import msgspec


class Problem(NamedTuple):
    """One kind of error answer."""

    code: str
    status: int
    title: str
    retryable: bool
    """Could the same request succeed later? An answer may override it (`sold_out`)."""
    detail: str
    """Says what to do; an answer may replace it with something more exact."""

    @property
    def type(self) -> str:
        """Stable URI path, section of docs/errors.md."""
        return f"/problems/{self.code.replace('_', '-')}"


def _problem(code: str, status: int, title: str, detail: str, *, retryable: bool = False) -> Problem:
    return Problem(code, status, title, retryable, detail)


CATALOGUE: Final[dict[str, Problem]] = {
    problem.code: problem
    for problem in (
        _problem(
            "malformed_request",
            400,
            "Malformed request",
            "Send HTTP/1.1 as RFC 9112 has it; the connection is closed.",
        ),
        _problem(
            "unauthenticated",
            401,
            "Not authenticated",
            "Sign the request (RFC 9421) with a live key, or send a bearer token that may do this.",
        ),
        _problem("forbidden", 403, "Scope is missing", "Use a credential that has the scope named here."),
        _problem("not_eligible", 403, "Not eligible", "The person's region is outside the program's region."),
        _problem("not_found", 404, "Not found", "Check the path; see /docs for what exists."),
        _problem(
            "unknown_drop", 404, "Unknown drop", "Check the drop_id; a partner sees its own drops only."
        ),
        _problem("unknown_program", 404, "Unknown program", "Create the program first."),
        _problem("unknown_template", 404, "Unknown template", "Create the template first."),
        _problem("unknown_partner", 404, "Unknown partner", "Admit the partner first."),
        _problem(
            "unknown_request",
            404,
            "Unknown request",
            "Nothing durable is known of this out_request_no; send the grab again with the same number.",
            retryable=True,
        ),
        _problem("unknown_voucher", 404, "Unknown voucher", "Check the voucher_id."),
        _problem(
            "unknown_subscription",
            404,
            "Unknown subscription",
            "Check the subscription_id; a partner sees its own subscriptions only.",
        ),
        _problem(
            "unknown_event", 404, "Unknown event", "Check the event_id; a partner sees its own events only."
        ),
        _problem("method_not_allowed", 405, "Method not allowed", "See the Allow header."),
        _problem(
            "request_timeout",
            408,
            "Request too slow",
            "The request did not arrive in time; send it again, with the same number.",
            retryable=True,
        ),
        _problem("sold_out", 409, "Sold out", "Nothing is left of this drop."),
        _problem("person_limit", 409, "Person limit reached", "The person holds the voucher named here."),
        _problem(
            "request_mismatch",
            409,
            "Number used otherwise",
            "This out_request_no was used with another person or drop; make a new number per grab.",
        ),
        _problem("not_started", 409, "Not started", "The drop opens at opens_at.", retryable=True),
        _problem("ended", 409, "Ended", "The window of this drop is over."),
        _problem("paused", 409, "Paused", "The drop is paused; try again later.", retryable=True),
        _problem(
            "conflict", 409, "Conflict", "The change would break a promise; read the drop and try again."
        ),
        _problem(
            "events_gone",
            410,
            "Events gone",
            "Events after this cursor are no longer kept. Start again without after, and look up older "
            "vouchers by person.",
        ),
        _problem("body_too_large", 413, "Body too large", "Send a smaller body."),
        _problem("invalid_request", 422, "Invalid request", "Correct what is named in detail."),
        _problem("rate_limited", 429, "Rate limited", "Wait as Retry-After says.", retryable=True),
        _problem("head_too_large", 431, "Head too large", "Send fewer or shorter header fields."),
        _problem("internal", 500, "Internal error", "Ask again with the same number.", retryable=True),
        _problem(
            "not_ready",
            503,
            "Not ready",
            "This process cannot serve yet; `missing` names what it lacks.",
            retryable=True,
        ),
        _problem(
            "overloaded",
            503,
            "Overloaded",
            "Nothing was taken; ask again with the same number after Retry-After.",
            retryable=True,
        ),
        _problem(
            "rebuilding",
            503,
            "Rebuilding",
            "The drop is being checked; ask again with the same number after Retry-After.",
            retryable=True,
        ),
        _problem(
            "gate_unavailable",
            503,
            "Gate unavailable",
            "The decision could not be learnt and a grant may exist; ask again with the same number.",
            retryable=True,
        ),
        _problem(
            "ledger_unavailable",
            503,
            "Ledger unavailable",
            "Postgres cannot be reached; nothing was changed. Ask again after Retry-After.",
            retryable=True,
        ),
    )
}


class ProblemAnswer(Exception):
    """Ends a request with a problem of the catalogue."""

    def __init__(self, code: str, detail: str | None = None, **members: object) -> None:
        """Make the answer; `members` are added to the problem (see `render_problem`)."""
        super().__init__(code)
        self.code: Final = code
        self.detail: Final = detail
        self.members: Final = members


RETRY_AFTER_S: Final = 1
"""For every 429 and 503: load passes, and a rebuild is short."""
MEDIA_TYPE: Final = "application/problem+json"


def render_problem(code: str, *, detail: str | None = None, **members: object) -> tuple[int, bytes]:
    """`(status, body)` of a problem. Members of value None are left out.

    `retryable` overrides the catalogue's; `voucher` may be `msgspec.Raw` bytes.
    """
    problem = CATALOGUE[code]
    body: dict[str, object] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail if detail is None else detail,
        "code": problem.code,
        "retryable": problem.retryable,
    }
    body.update((name, value) for name, value in members.items() if value is not None)
    return problem.status, msgspec.json.encode(body)
