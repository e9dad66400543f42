"""What answers look like, for the OpenAPI document; they are written by `api.answers` and the lane."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from couponsvc.api.models import Moment, Slug
from couponsvc.values.drop import DropState


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ProgramAnswer(_Answer):
    """A program as it stands."""

    program_id: Slug
    name: str
    region: str
    created_at: Moment
    updated_at: Moment


class TemplateAnswer(_Answer):
    """A template as it stands."""

    program_id: Slug
    template_id: Slug
    name: str
    face_value_fen: int
    min_spend_fen: int
    valid_for_hours: int
    created_at: Moment
    updated_at: Moment


class DropAnswer(_Answer):
    """A drop as it stands: definition, terms and figures."""

    drop_id: Slug
    program_id: Slug
    template_id: Slug
    quantity: int
    per_person_limit: int
    opens_at: Moment
    closes_at: Moment
    partners: list[str]
    """A partner sees itself only."""
    face_value_fen: int
    min_spend_fen: int
    valid_for_hours: int
    state: DropState
    available: int
    pending: int
    issued: int
    sold_out_at: Moment | None


class DropSummary(_Answer):
    """A drop in a list: its definition, and what Postgres knows of it."""

    drop_id: Slug
    program_id: Slug
    template_id: Slug
    quantity: int
    per_person_limit: int
    opens_at: Moment
    closes_at: Moment
    partners: list[str]
    face_value_fen: int
    min_spend_fen: int
    valid_for_hours: int
    issued: int
    sold_out_at: Moment | None


class ProgramList(_Answer):
    """One page of programs; `next` is the `after` of the next page, null on the last."""

    programs: list[ProgramAnswer]
    next: str | None


class TemplateList(_Answer):
    """The templates of a program."""

    templates: list[TemplateAnswer]


class DropList(_Answer):
    """One page of drops; `next` is the `after` of the next page, null on the last."""

    drops: list[DropSummary]
    next: str | None


class VoucherAnswer(_Answer):
    """A voucher. The receipt of issuance is byte-identical for ever."""

    voucher_id: str
    drop_id: Slug
    seq: int
    code: str
    person_token: str
    out_request_no: str
    status: Literal["issued"]
    face_value_fen: int
    min_spend_fen: int
    issued_at: Moment
    valid_from: Moment
    valid_until: Moment


class VoucherList(_Answer):
    """Vouchers that a person holds of a drop."""

    vouchers: list[VoucherAnswer]


class PendingAnswer(_Answer):
    """Decided; the commit was not seen yet. Ask again at Location."""

    status: Literal["pending"]
    drop_id: Slug
    out_request_no: str


class EventAnswer(_Answer):
    """A CloudEvent (version 1.0, JSON); `/schemas/<type>.json` has the schema of each type."""

    specversion: Literal["1.0"]
    id: str
    """`evt_…`: the same event has the same id and the same bytes, however often and wherever it is seen."""
    source: str
    type: str
    subject: str
    """The partner."""
    time: Moment
    sequence: str | None = None
    """Of events of a drop: 1, 2, 3 … for this partner and drop, without gaps; ten digits."""
    datacontenttype: Literal["application/json"]
    dataschema: str
    data: dict[str, Any]


class EventPage(_Answer):
    """The next events of the feed. `next` is the `after` of the next question, on every page."""

    events: list[EventAnswer]
    next: str


class ReadyAnswer(_Answer):
    """The process can serve."""

    status: Literal["ready"]
    redis: str
    postgres: str
    version: str


class AliveAnswer(_Answer):
    """The process runs."""

    status: Literal["alive"]


class ProblemBody(BaseModel):
    """RFC 9457; docs/errors.md has a section for every `code`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    out_request_no: str | None = None
    opens_at: Moment | None = None
    resets_at: Moment | None = None
    voucher: VoucherAnswer | None = None
    missing: list[str] | None = None
