"""The program file of `couponsvc apply`: a program with its templates and drops.

Strict, because public money hangs on it: an unknown or repeated key, a moment without a time
zone, a number in quotes or a dangling reference is refused with one line that names file and
line and says what to write. The format is on the contract page.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from couponsvc import limits
from couponsvc.programs.strict_yaml import Section, StrictYamlError, compose

_REGION = re.compile(r"([0-9]{6})?")
_INTEGER_MAX = 2**31 - 1
"""Postgres `integer`."""
_FEN_MAX: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exact."""
_VALID_MAX_HOURS: Final = 24 * 366 * 10
_FILE_KEYS = ("program", "templates", "drops")
_PROGRAM_KEYS = ("id", "name", "region")
_TEMPLATE_KEYS = ("id", "name", "face_value_fen", "min_spend_fen", "valid_for_hours")
_DROP_KEYS = ("id", "template", "quantity", "per_person_limit", "opens_at", "closes_at", "partners")


class ProgramFileError(ValueError):
    """The file is not a program file; the message is one line, `file:line: what to do`."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """The `program:` section."""

    program_id: str
    name: str
    region: str
    """Division code (GB/T 2260), six digits; empty: no restriction."""


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """One item of `templates:`."""

    template_id: str
    name: str
    face_value_fen: int
    min_spend_fen: int
    valid_for_hours: int


@dataclass(frozen=True, slots=True)
class DropSpec:
    """One item of `drops:`. Moments are aware."""

    drop_id: str
    template_id: str
    quantity: int
    per_person_limit: int
    opens_at: datetime
    closes_at: datetime
    partners: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A whole file, every reference inside it checked."""

    program: ProgramSpec
    templates: tuple[TemplateSpec, ...]
    drops: tuple[DropSpec, ...]

    def only(self, drop_ids: frozenset[str]) -> "ProgramFile":
        """Keep the program, the drops named, and the templates that these use."""
        drops = tuple(drop for drop in self.drops if drop.drop_id in drop_ids)
        used = {drop.template_id for drop in drops}
        return replace(self, drops=drops, templates=tuple(t for t in self.templates if t.template_id in used))

    def moved_to(self, opens_at: datetime) -> "ProgramFile":
        """Shift every window so that the earliest drop opens at `opens_at`; lengths stay."""
        shift = opens_at - min(drop.opens_at for drop in self.drops)
        return replace(
            self,
            drops=tuple(
                replace(drop, opens_at=drop.opens_at + shift, closes_at=drop.closes_at + shift)
                for drop in self.drops
            ),
        )


def read_program_file(path: Path) -> ProgramFile:
    """Read and check a file.

    Raises:
        ProgramFileError: it cannot be read or is not a program file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ProgramFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > limits.BODY_MAX_BYTES:
        raise ProgramFileError(f"{path}: larger than {limits.BODY_MAX_BYTES} bytes; split the file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ProgramFileError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    return parse_program_file(text, str(path))


def parse_program_file(text: str, source: str) -> ProgramFile:
    """Read and check the text of a file; `source` names it in messages.

    Raises:
        ProgramFileError: not a program file.
    """
    try:
        root = compose(text, source)
        if root is None:
            raise ProgramFileError(f"{source}:1: empty; write program:, templates: and drops:")
        return _file(Section(root, source, "the file", _FILE_KEYS))
    except StrictYamlError as error:
        raise ProgramFileError(str(error)) from error


def _file(top: Section) -> ProgramFile:
    program = top.section("program", _PROGRAM_KEYS)
    templates: dict[str, TemplateSpec] = {}
    for section in top.sections("templates", _TEMPLATE_KEYS):
        template = _template(section)
        if template.template_id in templates:
            section.refuse("id", f"a second template {template.template_id}; give it another id")
        templates[template.template_id] = template
    drops: dict[str, DropSpec] = {}
    for section in top.sections("drops", _DROP_KEYS):
        drop = _drop(section)
        if drop.drop_id in drops:
            section.refuse("id", f"a second drop {drop.drop_id}; give it another id")
        if drop.template_id not in templates:
            section.refuse("template", f"no template {drop.template_id} in this file; add it to templates:")
        drops[drop.drop_id] = drop
    return ProgramFile(
        ProgramSpec(
            program.slug("id"),
            program.text("name"),
            program.pattern("region", _REGION, '"370200", or "" for none'),
        ),
        tuple(templates.values()),
        tuple(drops.values()),
    )


def _template(section: Section) -> TemplateSpec:
    return TemplateSpec(
        section.slug("id"),
        section.text("name"),
        section.integer("face_value_fen", at_least=1, at_most=_FEN_MAX),
        section.integer("min_spend_fen", at_least=0, at_most=_FEN_MAX),
        section.integer("valid_for_hours", at_least=1, at_most=_VALID_MAX_HOURS),
    )


def _drop(section: Section) -> DropSpec:
    drop = DropSpec(
        section.slug("id"),
        section.slug("template"),
        section.integer("quantity", at_least=1, at_most=_INTEGER_MAX),
        section.integer("per_person_limit", at_least=1, at_most=limits.PER_PERSON_LIMIT_MAX),
        section.moment("opens_at"),
        section.moment("closes_at"),
        section.slugs("partners"),
    )
    if drop.closes_at <= drop.opens_at:
        section.refuse("closes_at", "closes_at must be after opens_at")
    return drop
