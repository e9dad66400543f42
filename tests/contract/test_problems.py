"""The catalogue of problems and its documentation say the same."""

import json
import re
from pathlib import Path

import pytest

from couponsvc.api.problems import CATALOGUE, RETRY_AFTER_S, render_problem

DOCUMENT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")
ROW = re.compile(r"^\| \[(\w+)\]\(#(\w+)\) \| (\d{3}) \| (yes|no)", re.MULTILINE)


def test_every_problem_has_a_section_and_every_section_a_problem() -> None:
    sections = re.findall(r"^### (\w+)$", DOCUMENT, re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert set(sections) == set(CATALOGUE)


def test_every_section_says_something() -> None:
    for section in re.split(r"^### ", DOCUMENT, flags=re.MULTILINE)[1:]:
        code, _, text = section.partition("\n")
        assert len(text.split()) > 8, code


def test_the_table_has_every_problem_with_its_status_and_whether_to_retry() -> None:
    rows = [(code, int(status), retry == "yes") for code, _, status, retry in ROW.findall(DOCUMENT)]
    assert rows == [(code, problem.status, problem.retryable) for code, problem in CATALOGUE.items()]
    assert all(code == anchor for code, anchor, *_ in ROW.findall(DOCUMENT))


@pytest.mark.parametrize("code", CATALOGUE)
def test_a_problem_has_the_members_of_the_contract(code: str) -> None:
    status, body = render_problem(code)
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "code", "retryable"}
    assert problem["type"] == f"/problems/{code.replace('_', '-')}"
    assert (problem["status"], problem["code"]) == (status, code)
    assert 400 <= status < 600
    assert problem["detail"].endswith(".")


def test_members_are_added_and_absent_ones_left_out() -> None:
    _, body = render_problem("sold_out", detail="Soon.", retryable=True, out_request_no="n", voucher=None)
    problem = json.loads(body)
    assert (problem["detail"], problem["retryable"], problem["out_request_no"]) == ("Soon.", True, "n")
    assert "voucher" not in problem


def test_whoever_should_wait_is_told_for_how_long() -> None:
    assert RETRY_AFTER_S >= 1
    for problem in CATALOGUE.values():
        assert problem.retryable or problem.status not in {429, 503}
