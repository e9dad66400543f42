"""One total table from whatever is raised to the problem that is answered."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

import asyncpg
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from couponsvc.api.grab_answers import problem_headers
from couponsvc.api.problems import ProblemAnswer, render_problem
from couponsvc.programs.definitions import Conflict, Unknown
from couponsvc.programs.telling import GateAway, GateRebuilding
from couponsvc.support import logs

log = logs.get("api")

DETAIL_MAX_CHARS: Final = 800
"""A detail names what to correct; what a caller sent is never echoed at length."""
_POSTGRES_AWAY: Final = (
    OSError,  # the connection is refused or broke; TimeoutError is one of them
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,  # shutdown, crash of another session, cancelled by timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby
)
_CODE_OF: Final[dict[type[Exception], str]] = {
    Conflict: "conflict",
    GateRebuilding: "rebuilding",
    GateAway: "gate_unavailable",
}
_LEDGER_AWAY: Final = (
    "Postgres did not answer in time. Ask again after Retry-After: reading, defining and restocking "
    "by compare-and-set are safe to repeat."
)
_GATE_AWAY: Final = "Redis did not answer in time. Ask again after Retry-After."


def problem_of(error: Exception) -> ProblemAnswer | None:  # noqa: PLR0911 - one return per kind
    """The problem to answer with; None where nobody foresaw the error (it is logged as such)."""
    match error:
        case ProblemAnswer():
            return error
        case RequestValidationError():
            return ProblemAnswer("invalid_request", describe_errors(error.errors()))
        case HTTPException():
            return _of_http(error)
        case Unknown():
            return ProblemAnswer(f"unknown_{error.kind}", str(error))
        case Conflict() | GateRebuilding() | GateAway():
            return ProblemAnswer(_CODE_OF[type(error)], str(error))
        case RedisError():
            log.warning("redis did not answer", error=type(error).__name__)
            return ProblemAnswer("gate_unavailable", _GATE_AWAY)
        case _ if isinstance(error, _POSTGRES_AWAY):
            log.warning("postgres did not answer", error=type(error).__name__)
            return ProblemAnswer("ledger_unavailable", _LEDGER_AWAY)
        case _:
            return None


def describe_errors(errors: Sequence[Any]) -> str:
    """Say which fields are wrong and how, without repeating what was sent."""
    lines = []
    for error in errors:
        place = ".".join(str(part) for part in error["loc"] if part not in {"body", "query", "path"})
        message = error["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    text = "; ".join(lines)
    return text if len(text) <= DETAIL_MAX_CHARS else f"{text[:DETAIL_MAX_CHARS]}…"


def problem_response(answer: ProblemAnswer, headers: dict[str, str] | None = None) -> Response:
    """The response of a problem."""
    status, body = render_problem(answer.code, detail=answer.detail, **answer.members)
    response = Response(body, status)
    for name, value in problem_headers(status):
        response.headers[name.decode()] = value.decode()
    response.headers.update(headers or {})
    return response


async def send_problem(
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]], answer: ProblemAnswer
) -> None:
    """Send a problem from outside the application."""
    response = problem_response(answer)
    await send(
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    )
    await send({"type": "http.response.body", "body": response.body})


async def handle(_request: Request, error: Exception) -> Response:
    """Exception handler of the application for what `problem_of` knows."""
    answer = problem_of(error)
    if answer is None:
        raise error
    return problem_response(answer)


def _of_http(error: HTTPException) -> ProblemAnswer | None:
    match error.status_code:
        case 404:
            return ProblemAnswer("not_found")
        case 405:
            return ProblemAnswer("method_not_allowed")
        case status if 400 <= status < 500:  # noqa: PLR2004 - the client's errors
            return ProblemAnswer("invalid_request", str(error.detail))
        case _:
            return None
