"""The pieces around the demo's judge: nobody is left out, records survive, the table tells the truth."""

import io
import os
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from couponsvc.client import Answer
from couponsvc.demo.cpu import cpu_seconds, spent
from couponsvc.demo.figures import DropFigures, Figures
from couponsvc.demo.plan import PREFERENCE_SHARES, PREFERENCES, CrowdPlan
from couponsvc.demo.program import demo_program, free_names
from couponsvc.demo.promises import Promise
from couponsvc.demo.records import Why, press_of, read_presses, write_presses
from couponsvc.demo.report import CheckResult, Costs, result_table
from couponsvc.demo.rush import split_crowd

FIGURES = Figures(
    drops=(DropFigures("wed-20", 10, 10, 0.5), DropFigures("wed-100", 5, 4, None)),
    confirmed_count=14,
    confirmed_per_s=28.0,
    confirmed_p50_ms=4.0,
    confirmed_p99_ms=9.0,
    requests_count=100,
    requests_per_s=50.0,
    rush_s=2.0,
    outcomes=Counter(sold_out=80, issued=14),
    whys=Counter(first=100),
)


@pytest.mark.parametrize(("persons", "processes"), [(60_000, 2), (7, 3), (2, 5), (1, 1)])
def test_every_person_is_in_exactly_one_process(persons: int, processes: int) -> None:
    whole = CrowdPlan("http://x", "k", "s", ["a", "b", "c"], 0, "r", 1, persons, 256, 7, "")
    plans = split_crowd(whole, processes, Path("records"))
    people = [n for plan in plans for n in range(plan.first_person, plan.first_person + plan.persons_count)]
    assert people == list(range(1, persons + 1))
    assert len({plan.records_path for plan in plans}) == len({plan.seed for plan in plans}) == processes
    assert sum(plan.connections_count for plan in plans) <= 256


def test_every_preference_tries_every_denomination() -> None:
    assert all(sorted(order) == [0, 1, 2] for order in PREFERENCES)
    assert sum(PREFERENCE_SHARES) == pytest.approx(1)


def test_the_full_demo_is_the_published_wednesday() -> None:
    program = demo_program(60_000, 60_000, "bank-a")
    assert [drop.quantity for drop in program.drops] == [8_000, 2_950, 500]
    assert len(program.templates) == 3
    assert demo_program(90_000, 60_000, "bank-a") == program, "more people do not make more vouchers"


def test_a_smaller_crowd_meets_a_stock_in_proportion() -> None:
    program = demo_program(600, 60_000, "bank-z")
    assert [drop.quantity for drop in program.drops] == [80, 30, 5]
    assert {drop.partners for drop in program.drops} == {("bank-z",)}
    assert [drop.quantity for drop in demo_program(1, 60_000, "bank-a").drops] == [1, 1, 1]


def test_a_second_demo_on_the_same_data_takes_other_names() -> None:
    program = demo_program(600, 60_000, "bank-a")
    taken = {drop.drop_id for drop in program.drops} | {f"{program.drops[0].drop_id}-2"}
    renamed = free_names(program, taken.__contains__)
    assert [drop.drop_id for drop in renamed.drops] == [f"{drop.drop_id}-3" for drop in program.drops]
    assert free_names(program, lambda _: False) == program


def test_what_was_answered_is_written_down_byte_by_byte(tmp_path: Path) -> None:
    voucher = '{"seq":1,  "name":"消费券"}'
    held = b'{"code":"person_limit","retryable":false,"voucher":' + voucher.encode() + b"}"
    answers = [
        Answer(201, voucher.encode(), sent_ns=5, settled_ns=9),
        Answer(409, held),
        Answer(409, b'{"code":"sold_out","retryable":true}'),
        Answer(0, b""),
    ]
    presses = [press_of("d", "p", "n", Why.FIRST, answer) for answer in answers]
    path = tmp_path / "presses.jsonl"
    write_presses(path, presses)
    assert list(read_presses(path)) == presses
    assert [press.voucher for press in presses] == [voucher, voucher, "", ""]
    assert [press.outcome for press in presses] == ["issued", "person_limit", "sold_out", "lost"]
    assert [press.retryable for press in presses] == [False, False, True, True]


def table(promises: list[Promise], check: CheckResult) -> str:
    console = Console(width=120, file=io.StringIO())
    costs = Costs({"api": 1.0, "clients": 0.5}, {"api": 0.2}, 14, 100)
    console.print(result_table("Qingdao", promises, check, FIGURES, costs))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_what_was_kept_and_what_it_cost() -> None:
    text = table([Promise(1, "never one too many", "14 vouchers", ())], CheckResult(0, ""))
    assert "kept: 14 vouchers" in text
    assert "zero drift" in text
    assert "10 of 10 issued, in 0.50 s" in text
    assert "4 of 5 issued, stock remained" in text
    assert "10000 µs per request" in text
    assert "14286 µs per voucher until all were issued" in text


def test_the_table_shows_what_was_broken() -> None:
    promises = [Promise(2, "never one too few", "x", tuple(f"violation {n}" for n in range(9)))]
    text = table(promises, CheckResult(1, "drop wed-20 drifts by 1"))
    assert "BROKEN, 9 times" in text
    assert "violation 4" in text
    assert "and 4 more" in text
    assert "violation 5" not in text
    assert "exit code 1: drop wed-20 drifts by 1" in text


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="CPU seconds are read from /proc")
def test_cpu_seconds_of_this_process_grow_with_what_it_does() -> None:
    before = cpu_seconds(os.getpid())
    while not sum(spent(before, cpu_seconds(os.getpid())).values()):
        sum(range(100_000))
    assert cpu_seconds(2**22 + 1) == {}, "a process that is not there costs nothing"
