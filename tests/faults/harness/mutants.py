"""Planted bugs: copies of our source with one rule taken out, to see whether the checker finds out.

A mutant is a few textual edits. Each old text must be there exactly once, so that a mutant cannot
silently become the correct service when the source changes (`test_fault_checker.py` tries them all).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).parents[3] / "src"
MIGRATIONS: Final = SOURCE.parent / "migrations"
PACKAGE: Final = "couponsvc"


class Edit(NamedTuple):
    """One replacement in a file of the package."""

    file: str
    """Path below the package."""
    old: str
    """Must occur exactly once."""
    new: str


class Mutant(NamedTuple):
    """One planted bug, and the short schedule that shows it."""

    name: str
    rule: str
    """What a correct service does and this one does not."""
    kinds: Sequence[str]
    """Processes that run it; the others are correct."""
    act: str
    """A name of `acts.ACTS`."""
    broken: str
    """The rule of the checker that must be broken, whatever else is."""
    edits: Sequence[Edit]
    schema: str = ""
    """A statement that takes the rule out of the ledger as well."""
    schema_again: str = ""
    """And the one that puts it back, on an empty ledger."""


class DoesNotApply(Exception):
    """An old text is not there exactly once: the source has changed; says where."""


def mutated(mutant: Mutant) -> dict[str, str]:
    """Text of every file that the mutant changes.

    Raises:
        DoesNotApply: it was made for another version of the source.
    """
    texts: dict[str, str] = {}
    for file, old, new in mutant.edits:
        text = texts.get(file) or (SOURCE / PACKAGE / file).read_text("utf-8")
        if text.count(old) != 1:
            raise DoesNotApply(f"{mutant.name}: {text.count(old)} places in {file} read {old!r}")
        texts[file] = text.replace(old, new)
    return texts


def plant(mutant: Mutant, directory: Path) -> Path:
    """Write a copy of the source with the bug in it; what is returned goes first on PYTHONPATH.

    Raises:
        DoesNotApply: see `mutated`.
    """
    texts = mutated(mutant)
    source = directory / SOURCE.name
    shutil.copytree(SOURCE / PACKAGE, source / PACKAGE)  # compiled files stay valid: times are kept
    (directory / MIGRATIONS.name).symlink_to(MIGRATIONS)  # a checkout looks for them beside its source
    for file, text in texts.items():
        (source / PACKAGE / file).write_text(text, "utf-8")
    return source
