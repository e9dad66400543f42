import re
from pathlib import Path

import msgspec
import pytest
from bench.guard import Baseline, compare, conclude, main, ratios_of, read_baseline, render
from bench.ours import our_names
from bench.report import RoundReport, RowReport

WAS = {
    "confirmed": {"api": 2.0, "drain": 0.5, "redis": 0.5, "sum": 3.0},
    "sold-out": {"api": 1.4, "sum": 1.4},
}


def row(name: str, failure: str | None = None, **cpu_us: float) -> RowReport:
    total_us = sum(cpu_us.values())
    loop = RoundReport(1000.0, 3000, 0, 1.0, 1.5, 2.0, 3.0, cpu_us, wrk_us=5.0)
    return RowReport(
        name=name,
        title=name,
        level="D",
        signed=True,
        requests_per_s=1000.0,
        slowest_per_s=900.0,
        fastest_per_s=1100.0,
        p50_ms=1.0,
        p99_ms=2.0,
        cpu_us=cpu_us,
        cpu_sum_us=total_us,
        wrk_us=5.0,
        violations=[],
        failure=failure,
        rounds=[loop],
        open_loop=None,
    )


def changed(name: str, **ratios: float) -> dict[str, dict[str, float]]:
    kinds = {**WAS[name], **ratios}
    kinds["sum"] = sum(ratio for kind, ratio in kinds.items() if kind != "sum")
    return {**WAS, name: kinds}


def test_a_row_that_is_16_percent_dearer_is_found_and_the_process_named_first() -> None:
    now = changed("confirmed", api=1.9, drain=0.99, redis=0.6)
    (worse,) = compare(WAS, now)
    assert worse.row == "confirmed"
    assert list(worse.grown) == ["drain", "redis"], "the API became cheaper"
    assert worse.grown["drain"] == pytest.approx(0.49)
    assert re.search(r"confirmed: 3\.00 → 3\.49 echoes \(\+16%\): drain \+0\.49, redis \+0\.10", str(worse))


def test_15_percent_and_less_are_let_pass() -> None:
    assert compare(WAS, changed("confirmed", drain=0.94)) == []
    assert compare(WAS, changed("sold-out", api=1.6)) == []
    assert compare(WAS, WAS) == []


def test_what_one_process_gains_may_be_spent_by_another() -> None:
    assert compare(WAS, changed("confirmed", api=1.0, drain=1.4)) == []


def test_every_row_is_judged_for_itself() -> None:
    now = {**changed("confirmed", api=3.0), "sold-out": {"api": 2.8, "sum": 2.8}}
    assert [worse.row for worse in compare(WAS, now)] == ["confirmed", "sold-out"]
    assert [worse.row for worse in compare(WAS, {**now, "confirmed": WAS["confirmed"]})] == ["sold-out"]


def test_a_process_that_is_new_is_named() -> None:
    (worse,) = compare(WAS, changed("sold-out", relay=0.7))
    assert worse.grown == {"relay": pytest.approx(0.7)}
    assert worse.now == pytest.approx(2.1)


def test_a_row_that_is_missing_now_is_no_success() -> None:
    with pytest.raises(ValueError, match="not measured: sold-out"):
        compare(WAS, {"confirmed": WAS["confirmed"]})
    assert compare({"confirmed": WAS["confirmed"]}, WAS) == [], "a new row has nothing to be compared with"


def test_a_faster_machine_changes_nothing() -> None:
    slow = ratios_of(row("confirmed", api=60.0, redis=20.0), row("raw-asgi", api=30.0))
    fast = ratios_of(row("confirmed", api=20.0, redis=20 / 3), row("raw-asgi", api=10.0))
    assert slow == {"api": 2.0, "redis": pytest.approx(2 / 3), "sum": pytest.approx(8 / 3)}
    assert compare({"confirmed": slow}, {"confirmed": fast}) == []


def test_nothing_is_concluded_from_a_row_that_failed() -> None:
    with pytest.raises(ValueError, match="confirmed was not measured: 7 requests were not answered"):
        ratios_of(row("confirmed", "7 requests were not answered", api=60.0), row("raw-asgi", api=30.0))
    with pytest.raises(ValueError, match="raw-asgi was not measured"):
        ratios_of(row("confirmed", api=60.0), row("raw-asgi", api=0.0))


def test_a_baseline_is_read_as_it_was_written_and_anything_else_refused(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with pytest.raises(ValueError, match=r"no baseline\.json: make one"):
        read_baseline(path)
    baseline = Baseline("2026-10-01T00:00:00+00:00", {"cores": 2}, 256, 26.0, WAS)
    path.write_bytes(msgspec.json.encode(baseline))
    assert read_baseline(path) == baseline
    path.write_bytes(b'{"rows": 1}')
    with pytest.raises(ValueError, match="is no baseline"):
        read_baseline(path)


def test_the_table_shows_each_row_beside_its_baseline() -> None:
    was = Baseline("t", {}, 256, 26.0, WAS)
    now = Baseline("t", {}, 256, 25.0, {**changed("confirmed", drain=1.1), "repeated": {"sum": 1.1}})
    text = render(was, now)
    assert re.search(r"^confirmed +3\.00 +3\.60 +\+20%$", text, re.MULTILINE)
    assert re.search(r"^repeated +1\.10 +new$", text, re.MULTILINE)


def test_the_exit_code_tells_a_nightly_run_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    assert conclude(path, None, Baseline("t", {}, 256, 26.0, WAS)) == 0
    accepted = read_baseline(path)
    assert accepted.rows == WAS
    assert conclude(path, accepted, Baseline("t", {}, 256, 26.0, changed("confirmed", redis=0.6))) == 0
    assert "WORSE" not in capsys.readouterr().out
    assert conclude(path, accepted, Baseline("t", {}, 256, 26.0, changed("confirmed", redis=1.6))) == 1
    assert "WORSE confirmed" in capsys.readouterr().out
    assert read_baseline(path) == accepted, "only accepting writes"


def test_without_a_baseline_it_ends_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--baseline", str(tmp_path / "none.json")]) == 1
    assert "--accept" in capsys.readouterr().err


RESULTS = Path(__file__).parents[2] / "bench" / "results" / "2026-11-22.json"


def test_a_whole_run_can_be_the_baseline(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    arguments = ["--results", str(RESULTS), "--baseline", str(path)]
    assert main([*arguments, "--accept"]) == 0
    assert set(read_baseline(path).rows) == set(our_names())
    assert main(arguments) == 0


def test_a_file_without_results_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert main(["--results", str(empty), "--accept", "--baseline", str(tmp_path / "b.json")]) == 1
    assert not (tmp_path / "b.json").exists()
