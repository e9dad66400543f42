"""The program file is strict: what it accepts, and the one line it says of what it refuses."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from couponsvc.programs.program_file import (
    ProgramFile,
    ProgramFileError,
    parse_program_file,
    read_program_file,
)

ALL = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
EXAMPLES = [path for path in ALL if path.stem != "first-steps"]  # that one is no government's
GOOD = """\
program: {id: qingdao-2022, name: 青岛 2022, region: "370200"}
templates:
  - {id: dining-20, name: 满 50 减 20, face_value_fen: 2000, min_spend_fen: 5_000, valid_for_hours: 48}
drops:
  - id: wed-dining-20
    template: dining-20
    quantity: 8000
    per_person_limit: 1
    opens_at: 2027-06-02T10:00:00+08:00
    closes_at: 2027-06-02T20:30:00+08:00
    partners: [bank-a, bank-b]
"""


def parse(text: str) -> ProgramFile:
    return parse_program_file(text, "p.yaml")


def refusal(text: str) -> str:
    with pytest.raises(ProgramFileError) as refused:
        parse(text)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_a_good_file_is_read_as_it_is_written() -> None:
    file = parse(GOOD)
    assert (file.program.program_id, file.program.name, file.program.region) == (
        "qingdao-2022",
        "青岛 2022",
        "370200",
    )
    assert file.templates[0].min_spend_fen == 5000
    drop = file.drops[0]
    assert drop.opens_at == datetime(2027, 6, 2, 2, tzinfo=UTC)
    assert (drop.quantity, drop.per_person_limit, drop.partners) == (8000, 1, ("bank-a", "bank-b"))


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("quantity: 8000", "quantty: 8000"), 7, "no key 'quantty'; did you mean quantity?"),
        (("quantity: 8000", "quantity: 8000\n    quantity: 9000"), 8, "the key quantity twice"),
        (("    quantity: 8000\n", ""), 5, "lacks the key quantity"),
        (("quantity: 8000", 'quantity: "8000"'), 7, "without quotes"),
        (("quantity: 8000", "quantity: 0x10"), 7, "write a whole number"),
        (("quantity: 8000", "quantity: 8e3"), 7, "write a whole number"),
        (("quantity: 8000", "quantity: 0"), 7, "between 1 and 2147483647"),
        (("quantity: 8000", "quantity: 2147483648"), 7, "between 1 and 2147483647"),
        (("per_person_limit: 1", "per_person_limit: 17"), 8, "between 1 and 16"),
        (("10:00:00+08:00", "10:00:00"), 9, "without a time zone"),
        (("2027-06-02T10:00:00+08:00", "tomorrow"), 9, "write a moment like"),
        (("2027-06-02T10:00:00+08:00", "2027-06-32T10:00:00+08:00"), 9, "opens_at is"),
        (("20:30:00+08:00", "10:00:00+08:00"), 10, "must be after opens_at"),
        (("[bank-a, bank-b]", "[bank-a, bank-a]"), 11, "names bank-a twice"),
        (("[bank-a, bank-b]", "[]"), 11, "at least one identifier"),
        (("[bank-a, bank-b]", "bank-a"), 11, "must be a list"),
        (("template: dining-20", "template: dining-30"), 6, "no template dining-30 in this file"),
        (("id: wed-dining-20", "id: Wed_20"), 5, "id is 'Wed_20'"),
        (("id: wed-dining-20", "id: w"), 5, "2 to 63"),
        (('region: "370200"', "region: 370200"), 1, "put it in quotes"),
        (('region: "370200"', 'region: "37"'), 1, "write it like"),
        (("name: 青岛 2022", "name: 2022"), 1, "put it in quotes"),
        (("name: 青岛 2022", 'name: " "'), 1, "1 to 200 printable"),
        (("min_spend_fen: 5_000", "min_spend_fen: -1"), 3, "write a whole number"),
        (("program: {", "program: ["), 1, "not YAML"),
        (("drops:\n", "drops: []\nother:\n"), 5, "no key 'other'"),
    ],
)
def test_a_mistake_is_refused_with_its_line(change: tuple[str, str], line: int, says: str) -> None:
    assert change[0] in GOOD
    message = refusal(GOOD.replace(*change, 1))
    assert message.startswith(f"p.yaml:{line}: "), message
    assert says in message


def test_a_second_template_or_drop_of_the_same_name_is_refused() -> None:
    template = GOOD.splitlines()[2]
    assert "a second template dining-20" in refusal(GOOD.replace(template, f"{template}\n{template}"))
    drop = GOOD.split("drops:\n")[1]
    message = refusal(GOOD + drop)
    assert message.startswith("p.yaml:12: "), message
    assert "a second drop wed-dining-20" in message


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "- a\n", "just text", "a: 1\n---\nb: 2\n", "x: [\n"]
)
def test_what_is_no_program_file_is_refused(text: str) -> None:
    assert refusal(text).startswith("p.yaml:")


def test_deep_nesting_is_refused_and_not_followed() -> None:
    assert refusal("[" * 5_000).startswith("p.yaml:")


def test_a_file_that_is_not_there_or_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ProgramFileError, match=r"missing\.yaml: cannot be read"):
        read_program_file(tmp_path / "missing.yaml")
    path = tmp_path / "gbk.yaml"
    path.write_bytes(b"# ok\nprogram: \xc7\xe0\n")
    with pytest.raises(ProgramFileError, match=r"gbk\.yaml:2: not UTF-8"):
        read_program_file(path)


def test_moving_keeps_the_length_and_order_of_windows() -> None:
    later = GOOD.replace("2027-06-02", "2027-06-05").split("drops:\n")[1].replace("wed-", "sat-")
    file = parse(GOOD + later)
    opens_at = datetime(2030, 1, 1, tzinfo=UTC)
    moved = file.moved_to(opens_at)
    assert [drop.opens_at - opens_at for drop in moved.drops] == [timedelta(0), timedelta(days=3)]
    assert [d.closes_at - d.opens_at for d in moved.drops] == [d.closes_at - d.opens_at for d in file.drops]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_program_file_with_its_source(path: Path) -> None:
    file = read_program_file(path)
    assert file.drops
    assert "# Source" in path.read_text("utf-8")


def test_the_four_programs_are_there() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "hangzhou-2022",
        "henan-2024",
        "qingdao-2022",
        "shanghai-2024",
    ]


def test_the_qingdao_drop_has_the_published_figures() -> None:
    file = read_program_file(next(path for path in EXAMPLES if path.stem == "qingdao-2022"))
    terms = {template.template_id: template for template in file.templates}
    wednesday = [drop for drop in file.drops if "-wed-" in drop.drop_id]
    assert [(terms[d.template_id].face_value_fen, d.quantity) for d in wednesday] == [
        (2_000, 8_000),
        (10_000, 2_950),
        (20_000, 500),
    ]
    for drop in file.drops:
        assert drop.opens_at.strftime("%a %H:%M") in ("Wed 10:00", "Sat 10:00")
        assert drop.closes_at.strftime("%H:%M") == "20:30"
        assert terms[drop.template_id].valid_for_hours == 48
