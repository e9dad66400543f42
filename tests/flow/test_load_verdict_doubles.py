"""The oracle passes an honest API and catches every broken one, over real HTTP.

The broken servers are doubles of the API (tests/doubles), made only for this.
"""

from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import httpx2
import msgspec
import pytest
from loadtests.oracle import Deployment, Patience, Promise, Standing, Verdict, judge
from loadtests.oracle.evidence import Figures
from loadtests.records import DropDefinition
from loadtests.scenario import Budgets

from couponsvc.support.signing import HmacKey
from tests.doubles.broken_api import AUDITOR_TOKEN, serving
from tests.doubles.driver import Crowd, drive
from tests.doubles.shop import Drop, Fault, Shop

pytestmark = pytest.mark.faults  # slower than the fast set may be

KEY = HmacKey("key-of-the-double", b"k" * 32)
BUDGETS = Budgets(
    p50_ms=5_000.0,
    p99_ms=5_000.0,
    first_answer_p99_ms=5_000.0,
    confirmed_within_ms=5_000.0,
    errors_share=0.0,
    unanswered_share=0.0,
)
"""Times so long that a busy machine keeps them."""
TIGHT = msgspec.structs.replace(BUDGETS, p99_ms=200.0)
PATIENCE = Patience(settle_s=0.3, confirmed_count=60, refused_count=20, unanswered_count=20)
OPENS_IN_S = 0.06
QUANTITY, PERSONS = 40, 80


def open_soon(shop: Shop, *quantities: int, limit: int = 1) -> list[DropDefinition]:
    """Define drops in the shop that open in a moment."""
    opens_ms = time() * 1000 + OPENS_IN_S * 1000
    for place, quantity in enumerate(quantities):
        name = f"drop-{place}"
        shop.drops[name] = Drop(name, quantity, limit, opens_ms, opens_ms + 3_600_000)
    return [
        DropDefinition(
            drop_id=drop.drop_id,
            quantity=drop.quantity,
            per_person_limit=drop.limit,
            opens_ms=drop.opens_ms,
            closes_ms=drop.closes_ms,
        )
        for drop in shop.drops.values()
    ]


async def verdict_on(
    shop: Shop, directory: Path, quantities: tuple[int, ...] = (QUANTITY,), **crowd: Any
) -> Verdict:
    """Drive a crowd against the shop and judge it."""
    limit = crowd.pop("limit", 1)
    async with serving(shop) as url, httpx2.AsyncClient(base_url=url, trust_env=False, verify=False) as http:

        async def figures(drop_id: str) -> Figures:
            response = await http.get(f"/v1/drops/{drop_id}")
            return msgspec.json.decode(response.content, type=Figures)

        async def operate(drop_id: str, what: str, body: dict[str, int]) -> object:
            return await http.post(f"/v1/drops/{drop_id}/{what}", json=body)

        drops = open_soon(shop, *quantities, limit=limit)
        planned = replace(Crowd(drops, PERSONS), **crowd)
        run = await drive(url, KEY, planned, directory, figures=figures, operate=operate)
        async with Deployment(url, auditor_token=AUDITOR_TOKEN, partner=KEY) as deployment:
            budgets = TIGHT if shop.fault is Fault.SLOW else BUDGETS
            return await judge(run, deployment, budgets, PATIENCE)


def broken(verdict: Verdict) -> dict[Promise, str]:
    """What the verdict holds against each promise, in words."""
    found = {
        promise: "; ".join(
            f"{finding.rule}: {example.says}"
            for finding in verdict.of(promise)
            for example in finding.examples
        )
        for promise in Promise
    }
    over = [budget.name for budget in verdict.budgets if budget.standing is Standing.BROKEN]
    found[Promise.BUDGETS] += ", ".join(over)
    return {promise: says for promise, says in found.items() if says}


async def test_an_honest_api_keeps_every_promise(tmp_path: Path) -> None:
    verdict = await verdict_on(Shop(), tmp_path)
    assert broken(verdict) == {}
    assert {promise: verdict.standing(promise) for promise in Promise} == dict.fromkeys(
        Promise, Standing.KEPT
    )
    assert verdict.exit_code == 0
    assert verdict.drops[0].issued == QUANTITY
    assert {"issued", "repeated", "sold_out", "person_limit", "not_started"} <= set(verdict.outcomes)


async def test_an_honest_api_with_stock_left_keeps_every_promise(tmp_path: Path) -> None:
    verdict = await verdict_on(Shop(), tmp_path, (PERSONS + 50,), limit=2)
    assert broken(verdict) == {}


async def test_an_honest_pause_and_restock_break_nothing(tmp_path: Path) -> None:
    plan = {
        5: [("pause", {}), ("resume", {})],
        60: [("restock", {"current_quantity": 20, "add": 5})],
    }
    verdict = await verdict_on(Shop(), tmp_path, (20,), plan=plan)
    assert broken(verdict) == {}
    assert verdict.drops[0].issued == 25
    assert "paused" in verdict.outcomes


async def test_several_honest_drops_keep_every_promise(tmp_path: Path) -> None:
    verdict = await verdict_on(Shop(), tmp_path, (10, 20, 150), persons_count=50)
    assert broken(verdict) == {}
    assert [row.issued for row in verdict.drops][:2] == [10, 20]


CAUGHT = [
    (Fault.DOUBLE_ISSUE, Promise.ONE_ANSWER, "two rows for one number"),
    (Fault.DOUBLE_ISSUE, Promise.ONE_ANSWER, "two different vouchers for one number"),
    (Fault.OVERSELL, Promise.TOO_MANY, "41 vouchers of 40"),
    (Fault.TWO_FOR_ONE_PERSON, Promise.TOO_MANY, "one person has 2 rows, 1 allowed"),
    (Fault.TWO_FOR_ONE_PERSON, Promise.ONE_ANSWER, "vouchers, 1 allowed"),
    (Fault.LOST_VOUCHER, Promise.STANDS, "no row of the ledger names this number"),
    (Fault.LOST_VOUCHER, Promise.TOO_MANY, "and the ledger has"),
    (Fault.CHANGED_BYTES, Promise.ONE_ANSWER, "two different vouchers for one number"),
    (Fault.OTHER_LEDGER, Promise.STANDS, "is not the one in the ledger"),
    (Fault.FOREIGN_VOUCHER, Promise.STANDS, "belongs to another person"),
    (Fault.FOREIGN_VOUCHER, Promise.TOO_MANY, "was answered to two numbers"),
    (Fault.INVENTED_ROW, Promise.TOO_MANY, "never asked for"),
    (Fault.SOLD_OUT_TOO_EARLY, Promise.TOO_FEW, "while a unit was certainly left"),
    (Fault.FINAL_TOO_EARLY, Promise.IN_ORDER, "granted after the drop had been called sold out for good"),
    (Fault.UNITS_STAY, Promise.TOO_FEW, "2 units stayed"),
    (Fault.GAP_IN_NUMBERS, Promise.TOO_FEW, "after 2 comes 4"),
    (Fault.SAME_NUMBER_TWICE, Promise.TOO_MANY, "stands twice"),
    (Fault.SAME_CODE_TWICE, Promise.TOO_MANY, "one code on two vouchers"),
    (Fault.LIMIT_WITHOUT_VOUCHER, Promise.IN_ORDER, "no voucher is shown"),
    (Fault.LIMIT_FOR_NOTHING, Promise.IN_ORDER, "at the limit of 1 with 0 other numbers"),
    (Fault.LIMIT_SHOWS_ANOTHERS, Promise.IN_ORDER, "is another person's or drop's"),
    (Fault.MISMATCH_FOR_NOTHING, Promise.IN_ORDER, "nobody else used it"),
    (Fault.FORGOTTEN_PENDING, Promise.STANDS, "pending, then refused, and nothing was issued"),
    (Fault.STUCK_PENDING, Promise.STANDS, "still without an end"),
    (Fault.STUCK_PENDING, Promise.TOO_FEW, "units pending"),
    (Fault.REFUSED_AFTER_VOUCHER, Promise.ONE_ANSWER, "sold_out after a voucher had been answered"),
    (Fault.REFUSED_AND_ISSUED, Promise.ONE_ANSWER, "refused, and issued nevertheless"),
    (Fault.OPENS_EARLY, Promise.IN_ORDER, "ms before the opening"),
    (Fault.OPENS_LATE, Promise.IN_ORDER, "ms after the opening"),
    (Fault.NOT_STARTED_AGAIN, Promise.IN_ORDER, "not started after somebody had been granted"),
    (Fault.ENDED_EARLY, Promise.IN_ORDER, "and nobody closed the drop"),
    (Fault.ENDED_EARLY, Promise.IN_ORDER, "granted after the drop had been called ended"),
    (Fault.PAUSED_BY_NOBODY, Promise.IN_ORDER, "no operator had paused the drop"),
    (Fault.UNKNOWN_DROP, Promise.IN_ORDER, "unknown_drop for a drop that was defined"),
    (Fault.FIGURES_DO_NOT_ADD_UP, Promise.TOO_MANY, "+ 40 is not 40"),
    (Fault.SAMPLES_DO_NOT_ADD_UP, Promise.TOO_MANY, "is not the quantity"),
    (Fault.SOLD_OUT_REOPENS, Promise.IN_ORDER, "after sold_out"),
    (Fault.ISSUED_FALLS, Promise.STANDS, "issued fell from"),
    (Fault.LOOK_UP_FAILS, Promise.ONE_ANSWER, "unknown_request after a voucher had been answered"),
    (Fault.SLOW, Promise.BUDGETS, "p99"),
    (Fault.ERRORS, Promise.BUDGETS, "errors"),
    (Fault.SILENT, Promise.BUDGETS, "unanswered"),
]


FAULTS = list(dict.fromkeys(fault for fault, _, _ in CAUGHT))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_broken_api_is_caught_by_the_promise_it_breaks(fault: Fault, tmp_path: Path) -> None:
    shop = Shop(fault)
    verdict = await verdict_on(shop, tmp_path, mistaken=fault is not Fault.UNITS_STAY)
    found = broken(verdict)
    assert verdict.exit_code == 1
    for _, promise, says in (case for case in CAUGHT if case[0] is fault):
        assert says in found.get(promise, ""), found


async def test_granting_while_paused_is_caught(tmp_path: Path) -> None:
    plan: Any = {5: [("pause", {}), ("resume", {})]}
    shop = Shop(Fault.GRANTS_WHILE_PAUSED)
    verdict = await verdict_on(shop, tmp_path, plan=plan, tolerance_ms=1.0)
    assert "granted while the drop was paused" in broken(verdict).get(Promise.IN_ORDER, ""), verdict.drops


def test_every_fault_of_the_double_is_tried() -> None:
    tried = {fault for fault, _, _ in CAUGHT} | {Fault.NONE, Fault.GRANTS_WHILE_PAUSED}
    assert tried == set(Fault)
