"""The OpenAPI document: every answer of every route, the lane's included, with examples."""

from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from couponsvc import limits
from couponsvc.api import answer_models, models
from couponsvc.api.lane_document import GRAB_PATH, GrabBodyModel, grab_operation
from couponsvc.api.problems import CATALOGUE, MEDIA_TYPE, RETRY_AFTER_S, Problem

REFERENCE: Final = "#/components/schemas/{model}"
_BODIES: Final[tuple[type[BaseModel], ...]] = (
    models.ProgramBody,
    models.TemplateBody,
    models.DropBody,
    models.RestockBody,
    models.SubscriptionBody,
    models.RedeliverBody,
    answer_models.VoucherAnswer,
    answer_models.PendingAnswer,
    answer_models.ProblemBody,
    GrabBodyModel,
)
_EVERYWHERE: Final = (
    "unauthenticated",
    "body_too_large",
    "invalid_request",
    "internal",
    "ledger_unavailable",
)
"""Problems that any request below /v1 may meet."""
_SCOPE_OF: Final = {"grab": "grab", "export_ledger": "audit"} | dict.fromkeys(
    ("create_subscription", "delete_subscription", "rotate_secret", "test_subscription", "redeliver_events"),
    "read",
)
"""Where it is not `read` for reading and `operate` for changing."""
_HEADER_OF_STATUS: Final[dict[int, tuple[str, dict[str, Any]]]] = {
    status: (
        "Retry-After",
        {"description": "Seconds to wait.", "schema": {"type": "integer"}, "example": RETRY_AFTER_S},
    )
    for status in (429, 503)
} | {
    401: (
        "WWW-Authenticate",
        {"description": "How to authenticate (RFC 9110).", "schema": {"type": "string"}},
    )
}
_REQUEST_ID: Final = {
    "description": "Echoed (1 to 128 visible ASCII characters) or made. Name it when you report a problem.",
    "schema": {"type": "string", "maxLength": limits.REQUEST_ID_MAX_CHARS},
}
_DESCRIPTION: Final = """\
Hands out limited vouchers to very many people at once, and proves afterwards that it did so correctly.

Partners sign every request with HTTP Message Signatures (RFC 9421; `hmac-sha256` or `ed25519` as the
key's record says) over `"@method"`, `"@path"`, `"@query"` where there is one and `"content-digest"`
(RFC 9530, `sha-256`) where there is a body; operators, auditors and tools send a bearer token.
Every error is `application/problem+json` (RFC 9457); docs/errors.md has a section for each `code`.
"""


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: the named problems by status, each with an example."""
    answers: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        _add_problem(answers, CATALOGUE[code])
    return answers


def _add_problem(
    answers: dict[int | str, dict[str, Any]], problem: Problem, key: int | str | None = None
) -> None:
    answer = answers.setdefault(
        problem.status if key is None else key,
        {
            "description": "",
            "content": {
                MEDIA_TYPE: {"schema": {"$ref": REFERENCE.format(model="ProblemBody")}, "examples": {}}
            },
        },
    )
    answer["content"][MEDIA_TYPE]["examples"][problem.code] = {
        "summary": problem.title,
        "value": {
            "type": problem.type,
            "title": problem.title,
            "status": problem.status,
            "detail": problem.detail,
            "code": problem.code,
            "retryable": problem.retryable,
        },
    }
    answer["description"] = " or ".join(f"`{code}`" for code in answer["content"][MEDIA_TYPE]["examples"])
    if problem.status in _HEADER_OF_STATUS:
        name, header = _HEADER_OF_STATUS[problem.status]
        answer["headers"] = {name: header}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version=app.openapi_version,
            description=_DESCRIPTION,
            routes=app.routes,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            tags=[
                {"name": "grabs", "description": "One attempt by one person."},
                {"name": "vouchers", "description": "What was issued."},
                {"name": "drops", "description": "One opening of a stock of vouchers, with a window."},
                {"name": "programs", "description": "Government mandates and their voucher templates."},
                {"name": "events", "description": "What a partner hears of: its feed, and where to send it."},
                {"name": "health", "description": "For load balancers and Prometheus; no credential."},
            ],
        )
        _add_schemas(schema)
        schema["paths"].setdefault(GRAB_PATH, {})["post"] = grab_operation(problems)
        schema["security"] = [{"bearer": []}, {"signature": []}]
        for path, method, operation in _operations(schema):
            _complete(path, method, operation)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_schemas(schema: dict[str, Any]) -> None:
    _, definitions = models_json_schema([(model, "validation") for model in _BODIES], ref_template=REFERENCE)
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name, definition in definitions["$defs"].items():
        schemas.setdefault(name, definition)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "Operators, auditors, tools."},
        "signature": {
            "type": "http",
            "scheme": "signature",
            "description": "HTTP Message Signatures (RFC 9421): `Signature-Input`, `Signature`, and "
            "`Content-Digest` where there is a body.",
        },
    }


def _operations(schema: dict[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """Add what every operation answers, and take out what FastAPI would and we do not."""
    answers = operation["responses"]
    if MEDIA_TYPE not in answers.get("422", {}).get("content", {}):
        answers.pop("422", None)
    codes: tuple[str, ...] = _EVERYWHERE if path.startswith("/v1/") else ()
    if method == "get":
        codes = tuple(code for code in codes if code != "body_too_large")
    for code in codes:
        _add_problem(answers, CATALOGUE[code], key=str(CATALOGUE[code].status))
    if path.startswith("/v1/"):
        scope = _SCOPE_OF.get(operation["operationId"], "read" if method == "get" else "operate")
        operation["description"] += f"\n\nScope: `{scope}`."
    else:
        operation["security"] = []
    for answer in answers.values():
        answer.setdefault("headers", {})["X-Request-Id"] = _REQUEST_ID
    operation["responses"] = dict(sorted(answers.items()))
