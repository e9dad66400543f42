"""Bodies of the API, strict: nothing unknown, nothing coerced, nothing twice."""

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NoReturn, TypeVar

from fastapi import Query
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from couponsvc import limits
from couponsvc.api.handlers import describe_errors
from couponsvc.api.problems import ProblemAnswer
from couponsvc.outbox.redelivery import NAMED_MAX_COUNT
from couponsvc.values.event import SUBSCRIBABLE
from couponsvc.values.voucher import MAX_NUMBER

SLUG_PATTERN: Final = "^[a-z0-9][a-z0-9-]{1,62}$"
AFTER_PATTERN: Final = "^[a-z0-9-]{0,63}$"
NAME_MAX_CHARS: Final = 200
NAME_PATTERN: Final = r"^[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*$"
"""Text for people: no control characters, line breaks, or marks that turn the direction of text."""
FEN_MAX: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly (RFC 8259 §6)."""
VALID_MAX_HOURS: Final = 24 * 366 * 10
PARTNERS_MAX_COUNT: Final = 1_000
SUBSCRIPTION_DROPS_MAX_COUNT: Final = 1_000
"""A partner with more asks for all of them and looks at `drop_id` itself."""
EVENT_ID_PATTERN: Final = "^evt_[1-9][0-9]{0,18}$"

_NAME: Final = re.compile(NAME_PATTERN.removesuffix("$")).fullmatch
_MOMENT: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
).fullmatch
_YEARS: Final = range(2000, 2200)
"""Any other year is a slip of the pen."""

Model = TypeVar("Model", bound=BaseModel)


def _parse_moment(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or _MOMENT(value) is None:
        raise ValueError("write a moment with its offset, e.g. 2026-10-01T10:00:00+08:00")
    moment = datetime.fromisoformat(value.upper())
    if moment.year not in _YEARS:
        raise ValueError(f"the year is outside {_YEARS.start} to {_YEARS.stop - 1}")
    moment = moment.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)


def _parse_name(value: str) -> str:
    if _NAME(value) is None:
        raise ValueError("control characters and marks that turn the direction of text are not allowed")
    return value


def _parse_digits(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("write a whole number in digits")
    return value


def _each_once(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise ValueError("names one of them twice")
    return value


def _subscribable(value: list[str]) -> list[str]:
    if unknown := set(value) - set(SUBSCRIBABLE):
        raise ValueError(
            f"{min(unknown)[:NAME_MAX_CHARS]!r} is no type; there are: {', '.join(SUBSCRIBABLE)}"
        )
    return value


_UNSAID: Final = datetime.min.replace(tzinfo=UTC)
DIGITS: Final = BeforeValidator(_parse_digits)
"""For integers of a query: pydantic would also read `1_0`, ` 10` and `10.0`."""
After = Annotated[str, Query(pattern=AFTER_PATTERN, description="`next` of the page before")]
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
Moment = Annotated[
    datetime, BeforeValidator(_parse_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]
Name = Annotated[
    str,
    Field(min_length=1, max_length=NAME_MAX_CHARS, json_schema_extra={"pattern": NAME_PATTERN}),
    AfterValidator(_parse_name),
]
Fen = Annotated[int, Field(le=FEN_MAX)]
Count = Annotated[int, Field(ge=1, le=MAX_NUMBER)]


class _Body(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class ProgramBody(_Body):
    """A government's mandate."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "青岛 2022 惠民消费券", "region": "370200"}]}
    )
    name: Name
    region: Annotated[str, Field(pattern="^([0-9]{6})?$")] = ""
    """Division code (GB/T 2260); empty: no restriction."""


class TemplateBody(_Body):
    """What a voucher is worth."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "餐饮 60 减 20",
                    "face_value_fen": 2000,
                    "min_spend_fen": 6000,
                    "valid_for_hours": 48,
                }
            ]
        }
    )
    name: Name
    face_value_fen: Annotated[Fen, Field(ge=1)]
    min_spend_fen: Annotated[Fen, Field(ge=0)]
    valid_for_hours: Annotated[int, Field(ge=1, le=VALID_MAX_HOURS)]


class DropBody(_Body):
    """One opening of a stock of vouchers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "program_id": "qingdao-2022",
                    "template_id": "dining-20",
                    "quantity": 8000,
                    "per_person_limit": 1,
                    "opens_at": "2026-10-01T02:00:00Z",
                    "closes_at": "2026-10-01T12:30:00Z",
                    "partners": ["bank-a"],
                }
            ]
        }
    )
    program_id: Slug
    template_id: Slug
    quantity: Count
    per_person_limit: Annotated[int, Field(ge=1, le=limits.PER_PERSON_LIMIT_MAX)]
    opens_at: Moment
    closes_at: Moment
    partners: Annotated[
        list[Slug],
        Field(max_length=PARTNERS_MAX_COUNT, json_schema_extra={"uniqueItems": True}),
        AfterValidator(_each_once),
    ]

    @model_validator(mode="after")
    def _window_is_open(self) -> "DropBody":
        if self.opens_at >= self.closes_at:
            raise ValueError("closes_at must be later than opens_at")
        return self


class RestockBody(_Body):
    """Compare-and-set: adds only where the quantity is still `current_quantity`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"current_quantity": 8000, "add": 500}]})
    current_quantity: Count
    add: Count


class SubscriptionBody(_Body):
    """Where to send which events."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": "https://bank-a.example/couponsvc",
                    "types": ["couponsvc.voucher.issued.v1"],
                    "drop_ids": None,
                }
            ]
        }
    )
    url: Annotated[str, Field(min_length=1, max_length=limits.WEBHOOK_URL_MAX_CHARS)]
    """`https`, port 443 or one from 1024 on, no user, no fragment; its addresses must be public."""
    types: Annotated[
        list[Annotated[str, Field(json_schema_extra={"enum": list(SUBSCRIBABLE)})]],
        Field(min_length=1, json_schema_extra={"uniqueItems": True}),
        AfterValidator(_each_once),
        AfterValidator(_subscribable),
    ]
    drop_ids: (
        Annotated[
            list[Slug],
            Field(
                min_length=1,
                max_length=SUBSCRIPTION_DROPS_MAX_COUNT,
                json_schema_extra={"uniqueItems": True},
            ),
            AfterValidator(_each_once),
        ]
        | None
    ) = None
    """null: every drop of the partner, present and future."""


class RedeliverBody(_Body):
    """Which events to send again: those named, those of a time, or those that were given up."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"event_ids": ["evt_17", "evt_18"]},
                {"from": "2026-10-01T02:00:00Z", "to": "2026-10-01T03:00:00Z"},
                {"parked": True},
            ],
            "oneOf": [{"required": ["event_ids"]}, {"required": ["from", "to"]}, {"required": ["parked"]}],
            "dependentRequired": {"from": ["to"], "to": ["from"]},
        }
    )
    event_ids: Annotated[
        list[Annotated[str, Field(pattern=EVENT_ID_PATTERN)]],
        Field(min_length=1, max_length=NAMED_MAX_COUNT),
    ] = []
    since: Annotated[Moment, Field(alias="from")] = _UNSAID
    """Events that happened from then on …"""
    until: Annotated[Moment, Field(alias="to")] = _UNSAID
    """… and before then, of the types and drops that the subscription asks for."""
    parked: Annotated[bool, WithJsonSchema({"const": True, "type": "boolean"})] = False
    """All that was given up; at most 100,000 at a time."""

    @model_validator(mode="after")
    def _says_one(self) -> "RedeliverBody":
        if self.model_fields_set not in ({"event_ids"}, {"since", "until"}, {"parked"}):
            raise ValueError('say one of {"event_ids": […]}, {"from": …, "to": …}, {"parked": true}')
        if self.model_fields_set == {"parked"} and not self.parked:
            raise ValueError("parked is true, or left out")
        if self.model_fields_set == {"since", "until"} and self.since >= self.until:
            raise ValueError("to must be later than from")
        return self


def read_body(raw: bytes, model: type[Model]) -> Model:
    """Decode and check a body.

    Raises:
        ProblemAnswer: `invalid_request`, saying what to correct.
    """
    try:
        json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise ProblemAnswer("invalid_request", describe_errors(error.errors(include_input=False))) from None
    except UnicodeDecodeError:
        raise ProblemAnswer("invalid_request", "The body is not UTF-8.") from None
    except RecursionError:
        raise ProblemAnswer("invalid_request", "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        detail = f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise ProblemAnswer("invalid_request", detail) from None
    except ValueError as error:
        raise ProblemAnswer("invalid_request", str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a member given twice: readers disagree on which one counts (RFC 8259 §4)."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"{name[:NAME_MAX_CHARS]} is given twice; send it once.")
        members[name] = value
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259 §6).")
