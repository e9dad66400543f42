"""Which changes keep a drop's promises: every rule, on both sides of its limit."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from couponsvc.programs.definitions import Conflict, DropDefinition, StandingDrop
from couponsvc.programs.drop_rules import plan_change
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms

OPENS_MS, CLOSES_MS = 1_000_000_000_000, 1_000_003_600_000
TERMS = VoucherTerms(2000, 6000, 48 * 3_600_000)
DROP = Drop(
    drop_no=1,
    drop_id="wed",
    program_id="test",
    template_id="dining-20",
    region="",
    shard=0,
    epoch=1,
    version=1,
    status=DropStatus.ACTIVE,
    quantity=10,
    per_person_limit=1,
    opens_ms=OPENS_MS,
    closes_ms=CLOSES_MS,
    terms=TERMS,
    partners=frozenset({1}),
)
BEFORE, AT_OPENING, AFTER = OPENS_MS - 1, OPENS_MS, CLOSES_MS + 1


def standing(issued: int = 0, **changes: Any) -> StandingDrop:
    return StandingDrop(replace(DROP, **changes), ("bank-a",), (1,), issued, None)


def wanted(**changes: Any) -> DropDefinition:
    same = DropDefinition(
        drop_id="wed",
        program_id="test",
        template_id="dining-20",
        quantity=10,
        per_person_limit=1,
        opens_at=moment(OPENS_MS),
        closes_at=moment(CLOSES_MS),
        partners=frozenset({"bank-a"}),
    )
    return replace(same, **changes)


def moment(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms // 1000, UTC).replace(microsecond=unix_ms % 1000 * 1000)


@pytest.mark.parametrize("now_ms", [BEFORE, AT_OPENING, AFTER])
@pytest.mark.parametrize("issued", [0, 10])
@pytest.mark.parametrize("status", list(DropStatus))
def test_the_same_definition_is_never_a_change(now_ms: int, issued: int, status: DropStatus) -> None:
    plan = plan_change(standing(issued, status=status), wanted(), TERMS, now_ms)
    assert (plan.fields, plan.bumps_epoch, plan.quantity_step) == ((), False, 0)


RULES: dict[str, dict[str, Any]] = {
    "program_id": {"program_id": "other"},
    "template_id": {"template_id": "other"},
    "per_person_limit": {"per_person_limit": 2},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_changes_under_a_new_epoch_until_the_drop_is_frozen(rule: str) -> None:
    plan = plan_change(standing(), wanted(**RULES[rule]), TERMS, BEFORE)
    assert (plan.fields, plan.bumps_epoch) == ((rule,), True)
    for frozen, now_ms in ((standing(issued=1), BEFORE), (standing(), AT_OPENING)):
        with pytest.raises(Conflict, match=rule):
            plan_change(frozen, wanted(**RULES[rule]), TERMS, now_ms)


def test_new_terms_of_the_template_count_until_the_drop_is_frozen() -> None:
    new = VoucherTerms(3000, 6000, TERMS.valid_for_ms)
    assert plan_change(standing(), wanted(), new, BEFORE).terms == new
    for frozen, now_ms in ((standing(issued=1), BEFORE), (standing(), AT_OPENING)):
        plan = plan_change(frozen, wanted(), new, now_ms)
        assert (plan.terms, plan.fields) == (TERMS, ())


@pytest.mark.parametrize(
    ("opens_by_ms", "closes_by_ms", "opened_ok"),
    [(-1, 0, True), (0, 1, True), (1, 0, False), (0, -1, False)],
)
def test_an_opened_window_may_only_grow(opens_by_ms: int, closes_by_ms: int, *, opened_ok: bool) -> None:
    moved = wanted(opens_at=moment(OPENS_MS + opens_by_ms), closes_at=moment(CLOSES_MS + closes_by_ms))
    assert not plan_change(standing(), moved, TERMS, BEFORE).bumps_epoch
    for now_ms in (AT_OPENING, AFTER):
        if opened_ok:
            assert len(plan_change(standing(), moved, TERMS, now_ms).fields) == 1
        else:
            with pytest.raises(Conflict, match="open"):
                plan_change(standing(), moved, TERMS, now_ms)


def test_the_quantity_never_falls_below_what_is_issued() -> None:
    assert plan_change(standing(issued=4), wanted(quantity=4), TERMS, AT_OPENING).quantity_step == -6
    assert plan_change(standing(issued=4), wanted(quantity=12), TERMS, AT_OPENING).quantity_step == 2
    with pytest.raises(Conflict, match="4 vouchers"):
        plan_change(standing(issued=4), wanted(quantity=3), TERMS, AT_OPENING)


@pytest.mark.parametrize("change", [{"quantity": 11}, {"partners": frozenset({"bank-b"})}])
def test_a_closed_drop_changes_no_more(change: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match="closed for good"):
        plan_change(standing(status=DropStatus.CLOSED), wanted(**change), TERMS, BEFORE)
