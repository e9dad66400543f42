"""The judge of fault tests: rules about stock over time, windows and pauses (see test_fault_checker.py)."""

import pytest

from tests.unit.fault_scene import CLOSES_MS, OPENS_MS, Case, Cases, Scene, broken_by

case = Cases()


# --- never one too few ----------------------------------------------------------------------------
@case("sold_out_true", "fewer had asked than there were units")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.sold_out("c", 10, 20, retryable=True)
    began_ms = 19 if legal else 21
    scene.granted("b", began_ms, began_ms + 5)


@case("sold_out_true", "the other one was refused, so held nothing")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("pause", 0, 1)
    scene.granted("a", 0, 5)
    scene.call("b", 0, 5, *((0, "") if legal else (409, "paused")))
    scene.sold_out("c", 10, 20, retryable=True)


@case("sold_out_true", "a refusal holds nothing unless a fault was near")
def _(scene: Scene, *, legal: bool) -> None:
    fault_ms = 11_000 if legal else 9_000
    scene.fault(fault_ms, fault_ms + 1)
    scene.granted("a", 20_000, 20_005)
    scene.call("b", 20_000, 20_005, 429, "rate_limited")
    scene.sold_out("c", 20_010, 20_020, retryable=True)


@case("sold_out_true", "whoever is told so does not count")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.call("b", 0, 5, 0)
    scene.sold_out("c" if legal else "b", 10, 20, retryable=True)


@case("sold_out_true", "one number holds one unit, however often it was asked")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.quantity = 3
    scene.call("b", 0, 5, 0)
    scene.call("d" if legal else "b", 2, 7, 0)
    scene.sold_out("c", 10, 20, retryable=True)


@case("sold_out_true", "units had been added before")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("define", -20, -10, 1)
    scene.granted("a", 0, 5)
    began_ms = 28 if legal else 20
    scene.operation("restock", began_ms, began_ms + 5, 2)
    scene.sold_out("c", 30, 40, retryable=True)


@case("sold_out_true", "the lower quantity was refused")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("define", -20, -10, 2)
    scene.granted("a", 0, 5)
    scene.operation("lower", 6, 8, 1, ok=None if legal else False)
    scene.sold_out("c", 10, 20, retryable=True)


@case("sold_out_final_true", "not everything was issued")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.call("b", 0, 5, 202)
    scene.sold_out("c", 10, 20, retryable=False)
    scene.row("b", 19 if legal else 900)


@case("sold_out_final_true", "a restock that was answered")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("define", -20, -10, 1)
    scene.granted("a", 0, 5)
    scene.operation("restock", 6, 8, 2, ok=None if legal else True)
    scene.sold_out("c", 10, 20, retryable=False)


@case("sold_out_final_true", "a restock while a fault was near")
def _(scene: Scene, *, legal: bool) -> None:
    fault_ms = 11_000 if legal else 9_000
    scene.fault(fault_ms, fault_ms + 1)
    scene.operation("define", -20, -10, 1)
    scene.granted("a", 20_000, 20_005)
    scene.operation("restock", 20_006, 20_008, 2)
    scene.sold_out("c", 20_010, 20_020, retryable=False)


@case("nothing_stranded", "told sold out long after healing, with a unit left")
def _(scene: Scene, *, legal: bool) -> None:
    scene.fault(100, 200)
    scene.healed_ms = 200
    scene.granted("a", 0, 5)
    scene.call("b", 100, 150, 0)
    began_ms = 10_100 if legal else 10_300
    scene.sold_out("c", began_ms, began_ms + 10, retryable=True)


@case("nothing_stranded", "not served long after healing")
def _(scene: Scene, *, legal: bool) -> None:
    scene.fault(100, 200)
    scene.healed_ms = 200
    scene.granted("a", 0, 5)
    scene.call("c", 10_300, 10_310, 503, "overloaded" if legal else "rebuilding")


@case("nothing_stranded", "not served long after healing, although nothing is left")
def _(scene: Scene, *, legal: bool) -> None:
    scene.healed_ms = 200
    scene.granted("a", 0, 5)
    if legal:
        scene.granted("b", 0, 5)
    scene.call("c", 10_300, 10_310, 503, "gate_unavailable")


@case("nothing_stranded", "a unit is left in the end, and persons were sent away")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("pause", 0, 1)
    scene.healed_ms = 200
    scene.granted("a", 0, 5)
    code, number = ("request_mismatch", "n-a") if legal else ("paused", "n-b")
    scene.call("b", 10_250, 10_255, 409, code, number=number)
    scene.call("d", 10_250, 10_350, 0)
    scene.sold_out("c", 10_300, 10_310, retryable=True)


# --- windows and pauses ---------------------------------------------------------------------------
@case("opened_in_window", "issued before the opening")
def _(scene: Scene, *, legal: bool) -> None:
    middle_ms = OPENS_MS if legal else OPENS_MS - 500
    scene.granted("a", middle_ms - 100, middle_ms + 100)


@case("opened_in_window", "first asked for after the end")
def _(scene: Scene, *, legal: bool) -> None:
    first_ms = CLOSES_MS - 10 if legal else CLOSES_MS + 300
    scene.call("a", first_ms, first_ms + 5, 0)
    scene.granted("a", CLOSES_MS + 400, CLOSES_MS + 500)


@case("opened_in_window", "told not started after the opening")
def _(scene: Scene, *, legal: bool) -> None:
    began_ms = OPENS_MS + 100 if legal else OPENS_MS + 300
    scene.call("a", began_ms, began_ms + 5, 409, "not_started")


@case("opened_in_window", "told ended before the end")
def _(scene: Scene, *, legal: bool) -> None:
    scene.status = 2 if legal else 0
    scene.call("a", 0, 5, 409, "ended")


@case("opened_in_window", "told paused, and nobody had paused it")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("pause", 10, 15)
    scene.operation("resume", 20, 25)
    began_ms = 24 if legal else 26
    scene.call("a", began_ms, began_ms + 5, 409, "paused")


@case("opened_in_window", "first asked for in a pause, and issued before its end")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("pause", 0, 5)
    first_ms = 4 if legal else 6
    scene.call("a", first_ms, first_ms + 1, 0)
    scene.granted("a", 10, 20)
    scene.operation("resume", 1_000, 1_005)


@pytest.mark.parametrize("planted", case.all, ids=str)
def test_a_planted_violation_is_found(planted: Case) -> None:
    assert planted.rule in broken_by(planted, legal=False)


@pytest.mark.parametrize("planted", case.all, ids=str)
def test_what_only_looks_like_a_violation_is_none(planted: Case) -> None:
    assert not broken_by(planted, legal=True)
