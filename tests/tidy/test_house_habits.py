"""The house's own habits, as far as a test can see them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]
SCRIPTS = sorted((ROOT / "src").rglob("*.lua"))
STATEMENTS = sorted((ROOT / "src").rglob("*.sql"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

SOURCE_LINES_MAX_COUNT = 350
SCRIPT_LINES_MAX_COUNT = 180
README_LINES_MAX_COUNT = 200
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_source_file_is_short_and_named_for_what_it_does(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= SOURCE_LINES_MAX_COUNT
    assert path.stem not in VAGUE_NAMES


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= SCRIPT_LINES_MAX_COUNT
    prose = [line for line in text.split("KEYS")[0].splitlines() if line.strip("-[ ")]
    assert len(prose) >= 3, "a header says what the script does and why it is one step"
    assert not re.search(r"redis\.call\('(KEYS|SCAN)'", text), "a script touches only the keys it is given"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_sql_is_built_from_strings(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"\b(execute|fetch|fetchrow|fetchval)\(\s*f[\"']", text)


@pytest.mark.parametrize("path", STATEMENTS, ids=name)
def test_a_query_that_takes_parameters_names_them(path: Path) -> None:
    for block in path.read_text("utf-8").split("-- name: ")[1:]:
        head = block.split("\n", 1)[0]
        statement = "\n".join(line for line in block.splitlines() if not line.startswith("--"))
        assert "$1" not in statement or "Params:" in block, head


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_what_a_checker_is_told_to_ignore_is_named(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"# type: ignore(?!\[)", text)
    assert not re.search(r"# noqa(?!:)", text)


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(DOCUMENTS[0].read_text("utf-8").splitlines()) < README_LINES_MAX_COUNT


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_file_that_a_document_names_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    named = re.findall(r"`((?:src|tests|docs|examples|bench|migrations)/[\w./*-]+)`", text)
    linked = re.findall(r"\]\((?!http|#|/)([^)#]+)", text)
    missing = [place for place in named if not list(ROOT.glob(place.rstrip("/")))]
    missing += [place for place in linked if not (path.parent / place).exists()]
    assert missing == []


def test_decisions_say_what_enforces_them() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [path.name[:4] for path in decisions] == [f"{n:04d}" for n in range(1, len(decisions) + 1)]
    for path in decisions:
        assert "**Enforced by**" in path.read_text("utf-8"), path.name
