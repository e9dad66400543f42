"""The client's types say what the API's documented answers say: member by member, limit by limit."""

import msgspec
import pytest
from pydantic import BaseModel

from couponsvc import limits
from couponsvc.api import answer_models
from couponsvc.client import (
    Attempt,
    Delivery,
    DeliveryPage,
    Drop,
    NewSubscription,
    RotatedSecret,
    Subscription,
    Voucher,
    calls,
)

PAIRS: list[tuple[type[msgspec.Struct], type[BaseModel]]] = [
    (Voucher, answer_models.VoucherAnswer),
    (Drop, answer_models.DropAnswer),
    (NewSubscription, answer_models.NewSubscriptionAnswer),
    (RotatedSecret, answer_models.RotatedSecretAnswer),
    (Subscription, answer_models.SubscriptionAnswer),
    (Attempt, answer_models.AttemptAnswer),
    (Delivery, answer_models.DeliveryAnswer),
    (DeliveryPage, answer_models.DeliveryList),
]
LEFT_OUT: dict[type[msgspec.Struct], set[str]] = {Drop: {"partners"}}
"""A partner sees itself only."""


@pytest.mark.parametrize(("ours", "documented"), PAIRS, ids=lambda kind: kind.__name__)
def test_a_type_has_the_members_that_the_answer_has(
    ours: type[msgspec.Struct], documented: type[BaseModel]
) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(ours)}
    assert fields.keys() | LEFT_OUT.get(ours, set()) == documented.model_fields.keys()
    for name, field in fields.items():
        documented_null = type(None) in getattr(documented.model_fields[name].annotation, "__args__", ())
        ours_null = type(None) in getattr(field.type, "__args__", ())
        assert (name, ours_null) == (name, documented_null)


def test_the_limits_that_the_client_knows_are_those_of_the_service() -> None:
    assert calls.FEED_PAGE_MAX_COUNT == limits.FEED_PAGE_MAX_COUNT
    assert calls.FEED_WAIT_MAX_S == limits.FEED_WAIT_MAX_S
