"""Inputs that are kept: seeds, and what fuzzing found that reaches something new or once failed."""

from ast import literal_eval
from pathlib import Path
from typing import Final

from tests.fuzz.seeds import SEEDS

CORPUS: Final = Path(__file__).with_name("corpus")
"""A file per target, an input per line, written as a literal of Python."""


def seeds_of(name: str) -> list[bytes]:
    """Every kept input of a target."""
    path = CORPUS / f"{name}.txt"
    kept = path.read_text("ascii").splitlines() if path.exists() else []
    return [*SEEDS[name], *(literal_eval(line) for line in kept)]


def keep(name: str, inputs: list[bytes]) -> None:
    """Add inputs to the kept ones of a target, shortest first."""
    known = set(seeds_of(name))
    lines = sorted({repr(data) for data in inputs if data not in known}, key=lambda line: (len(line), line))
    CORPUS.mkdir(exist_ok=True)
    with (CORPUS / f"{name}.txt").open("a", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in lines)
