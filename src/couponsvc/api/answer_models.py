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


class SubscriptionAnswer(_Answer):
    """A subscription as it stands. Its secret is never shown again."""

    subscription_id: str
    url: str
    types: list[str]
    drop_ids: list[Slug] | None
    """null: every drop of the partner, present and future."""
    created_at: Moment
    disabled_at: Moment | None
    """When the receiver answered 410; it gets nothing since. Delete it and make a new one."""
    failure_count: int
    """Attempts that failed since the last one that did not."""
    held_until: Moment | None
    """While the receiver fails, nothing is tried before this."""
    previous_secret_until: Moment | None
    """Until then deliveries are signed with the secret before the present one, too."""


class SubscriptionList(_Answer):
    """All subscriptions of a partner."""

    subscriptions: list[SubscriptionAnswer]


class NewSubscriptionAnswer(_Answer):
    """A subscription was made. Keep the secret: it is shown this once."""

    subscription_id: str
    secret: str
    """`whsec_` and 32 bytes in base64 (Standard Webhooks)."""


class RotatedSecretAnswer(_Answer):
    """The new secret. Keep it: it is shown this once."""

    subscription_id: str
    secret: str
    previous_secret_until: Moment


class TestAnswer(_Answer):
    """A test event is on its way; the subscription's deliveries show what becomes of it."""

    subscription_id: str
    status: Literal["queued"]


class RedeliverAnswer(_Answer):
    """How many events will be sent again."""

    queued: int


class AttemptAnswer(_Answer):
    """One attempt to deliver."""

    attempt_no: int
    attempted_at: Moment
    took_ms: int
    status: int | None
    """Of the receiver's answer; null: there was no complete one."""
    outcome: Literal["delivered", "failed", "gone"]
    error: str


class DeliveryAnswer(_Answer):
    """What became of one event."""

    event_id: str
    type: str | None
    occurred_at: Moment | None
    state: Literal["waiting", "delivering", "parked", "delivered"]
    next_attempt_at: Moment | None
    parked_because: str | None
    attempts: list[AttemptAnswer]
    """The newest first, at most 20."""


class DeliveryList(_Answer):
    """One page of deliveries; `next` is the `before` of the next page, null on the last."""

    deliveries: list[DeliveryAnswer]
    next: str | None


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
