"""The program of the demo: the Wednesday drops of `examples/qingdao-2022.yaml`."""

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Final

from couponsvc.programs.program_file import ProgramFile, parse_program_file

EXAMPLE: Final = "qingdao-2022.yaml"
DROP_PREFIX: Final = "qingdao-2022-wed-"
_SUFFIXES_MAX_COUNT: Final = 1_000


def read_example(name: str) -> str:
    """Text of a file in `examples/`: inside the package when installed, beside `src` in a clone.

    Raises:
        OSError: neither is there.
    """
    packaged = files("couponsvc").joinpath("_examples", name)
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[3] / "examples" / name).read_text("utf-8")


def demo_program(persons_count: int, full_persons_count: int, partner_id: str) -> ProgramFile:
    """The three drops, by rising value; stock in proportion where the crowd is smaller than full."""
    whole = parse_program_file(read_example(EXAMPLE), EXAMPLE)
    program = whole.only(
        frozenset(drop.drop_id for drop in whole.drops if drop.drop_id.startswith(DROP_PREFIX))
    )
    share = min(1.0, persons_count / full_persons_count)
    return replace(
        program,
        drops=tuple(
            replace(drop, quantity=max(1, round(drop.quantity * share)), partners=(partner_id,))
            for drop in program.drops
        ),
    )


def free_names(program: ProgramFile, taken: Callable[[str], bool]) -> ProgramFile:
    """Number the drops where an earlier demo on the same data has used their names."""
    for number in range(1, _SUFFIXES_MAX_COUNT):
        suffix = f"-{number}" if number > 1 else ""
        drops = tuple(replace(drop, drop_id=drop.drop_id + suffix) for drop in program.drops)
        if not any(taken(drop.drop_id) for drop in drops):
            return replace(program, drops=drops)
    raise AssertionError("a thousand demos on one data directory")
