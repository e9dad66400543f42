"""The lane's page of the OpenAPI document: a grab and every answer to it."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from couponsvc import limits
from couponsvc.api import models

GRAB_PATH: Final = "/v1/drops/{drop_id}/grabs"

_DROP_ID: Final = "qingdao-2022-w31-wed-dining-20"
_NUMBER: Final = "20261001-000017"
VOUCHER_EXAMPLE: Final = {
    "voucher_id": "vch_7_17",
    "drop_id": _DROP_ID,
    "seq": 17,
    "code": "7KQ2MX9DRWH4T",
    "person_token": "p-8f3a61c0",
    "out_request_no": _NUMBER,
    "status": "issued",
    "face_value_fen": 2000,
    "min_spend_fen": 6000,
    "issued_at": "2026-10-01T02:00:00.412Z",
    "valid_from": "2026-10-01T02:00:00.412Z",
    "valid_until": "2026-10-03T02:00:00.412Z",
}
_GRAB_PROBLEMS: Final = (
    "unauthenticated",
    "forbidden",
    "not_eligible",
    "unknown_drop",
    "sold_out",
    "person_limit",
    "request_mismatch",
    "not_started",
    "ended",
    "paused",
    "body_too_large",
    "invalid_request",
    "rate_limited",
    "internal",
    "overloaded",
    "rebuilding",
    "gate_unavailable",
    "ledger_unavailable",
)
_MEMBERS_OF: Final[dict[str, dict[str, Any]]] = {
    "sold_out": {"out_request_no": _NUMBER},
    "person_limit": {
        "out_request_no": _NUMBER,
        "voucher": {
            **VOUCHER_EXAMPLE,
            "out_request_no": "20261001-000009",
            "voucher_id": "vch_7_9",
            "seq": 9,
        },
    },
    "request_mismatch": {"out_request_no": _NUMBER},
    "not_started": {
        "out_request_no": _NUMBER,
        "opens_at": "2026-10-01T02:00:00.000Z",
        "resets_at": "2026-10-01T02:00:00.000Z",
    },
    "ended": {"out_request_no": _NUMBER},
    "paused": {"out_request_no": _NUMBER},
    "overloaded": {"out_request_no": _NUMBER},
    "rebuilding": {"out_request_no": _NUMBER},
    "gate_unavailable": {"out_request_no": _NUMBER},
}


_RATE_HEADERS: Final = {
    name: {"description": description, "schema": {"type": "string"}, "example": example}
    for name, description, example in (
        ("RateLimit-Policy", "Grabs per second that the partner may send.", '"grabs";q=500;w=1'),
        ("RateLimit", "Grabs left, and in how many seconds there are more.", '"grabs";r=0;t=1'),
    )
}
"""Fields of draft-ietf-httpapi-ratelimit-headers; `Retry-After` is the one to follow."""


class GrabBodyModel(BaseModel):
    """One attempt by one person."""

    model_config = ConfigDict(
        title="GrabBody",
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "person_token": "p-8f3a61c0",
                    "out_request_no": _NUMBER,
                    "channel": "app",
                    "region": "370200",
                }
            ]
        },
    )

    person_token: Annotated[str, Field(pattern=r"^[!-~]+$", max_length=limits.PERSON_TOKEN_MAX_CHARS)]
    """The partner's pseudonym of a natural person; never an ID number."""
    out_request_no: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_\-|*@.:]+$", max_length=limits.OUT_REQUEST_NO_MAX_CHARS)
    ]
    """Unique per partner: the idempotency key."""
    channel: Annotated[str | None, Field(pattern=r"^[!-~]+$", max_length=limits.CHANNEL_MAX_CHARS)] = None
    """Where the person grabbed, in the partner's words."""
    region: Annotated[str | None, Field(pattern=r"^[!-~]+$", max_length=limits.CHANNEL_MAX_CHARS)] = None
    """Division code (GB/T 2260) of the person; refused where it lies outside the program's region."""


def grab_operation(
    problems: Callable[..., dict[int | str, dict[str, Any]]],
) -> dict[str, Any]:
    """The operation of the lane. `problems` writes the responses of problem codes."""
    answers = {str(status): answer for status, answer in problems(*_GRAB_PROBLEMS).items()}
    for answer in answers.values():
        for media in answer["content"].values():
            for code, example in media["examples"].items():
                example["value"].update(_MEMBERS_OF.get(code, {}))
    answers["429"]["headers"] = {**answers["429"].get("headers", {}), **_RATE_HEADERS}
    return {
        "tags": ["grabs"],
        "operationId": "grab",
        "summary": "Grab a voucher",
        "description": (
            "Answers 201 only when the voucher is committed. Asking again with the same `out_request_no` "
            "is always safe and gets the same answer. `Prefer: respond-async` does not wait for the commit. "
            f"The body has at most {limits.GRAB_BODY_MAX_BYTES} bytes. "
            "Needs a partner's credential with the scope `grab`."
        ),
        "parameters": [
            {
                "name": "drop_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "pattern": models.SLUG_PATTERN},
                "example": _DROP_ID,
            },
            {
                "name": "Prefer",
                "in": "header",
                "required": False,
                "description": "`respond-async` (RFC 7240): answer 202 as soon as the grab is decided.",
                "schema": {"type": "string"},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/GrabBodyModel"}}},
        },
        "responses": {
            "201": _voucher("Granted now, and committed"),
            "200": _voucher("This number was granted before: the byte-identical voucher"),
            "202": {
                "description": "Decided; the commit was not seen yet, or `Prefer: respond-async`",
                "headers": {
                    "Location": {"description": "Where the outcome is told.", "schema": {"type": "string"}}
                },
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/PendingAnswer"},
                        "example": {"status": "pending", "drop_id": _DROP_ID, "out_request_no": _NUMBER},
                    }
                },
            },
            **answers,
        },
    }


def _voucher(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/VoucherAnswer"},
                "example": VOUCHER_EXAMPLE,
            }
        },
    }
