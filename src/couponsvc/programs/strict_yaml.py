"""Strict reading of YAML mappings: every refusal is one line, `file:line: what to do`.

Values are read from the text of the scalar, not from what YAML makes of it, so that none of
YAML's guesses (`0x10`, `12:30` as a number, `yes`) applies and nothing is coerced.
"""

import difflib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NoReturn

import yaml

SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
_INTEGER = re.compile(r"[0-9][0-9_]{0,18}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)?")
_ZONE = re.compile(r"([Zz]|[+-]\d\d:\d\d)\Z")
_TEXT_TAG = "tag:yaml.org,2002:str"
TEXT_MAX_CHARS: Final = 200
"""Names are shown in lists; a longer one is a pasted paragraph."""


class StrictYamlError(ValueError):
    """The text is not what the reader expects; the message is one line, `file:line: …`."""


def compose(text: str, source: str) -> yaml.Node | None:
    """Parse YAML into nodes that know their lines; None for an empty document.

    Raises:
        StrictYamlError: not YAML, or more than one document.
    """
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise StrictYamlError(f"{source}:{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise StrictYamlError(f"{source}:1: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise StrictYamlError(f"{source}:1: nested too deeply") from error
    return root


class Section:
    """One mapping with a fixed set of keys; hands out values by key, checked."""

    def __init__(self, node: yaml.Node, source: str, name: str, keys: Sequence[str]) -> None:
        """Check the keys: all of `keys`, no other, none twice.

        Raises:
            StrictYamlError: they are not.
        """
        self._source = source
        self._node = node
        self.name = name
        self._values: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, f"{name} must be a mapping with the keys {', '.join(keys)}")
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value not in keys:
                self.refuse(key, f"{name} has no key {_written(key)}{_suggestion(key, keys)}")
            if key.value in self._values:
                self.refuse(key, f"{name} has the key {key.value} twice; remove one")
            self._values[key.value] = value
        for wanted in keys:
            if wanted not in self._values:
                self.refuse(node, f"{name} lacks the key {wanted}; add it")

    def refuse(self, where: yaml.Node | str, what: str) -> NoReturn:
        """Raise for a node, or for the value of a key.

        Raises:
            StrictYamlError: always.
        """
        node = self._values[where] if isinstance(where, str) else where
        raise StrictYamlError(f"{self._source}:{node.start_mark.line + 1}: {what}")

    def section(self, key: str, keys: Sequence[str]) -> "Section":
        """Read a mapping below this one."""
        return Section(self._values[key], self._source, f"{key}:", keys)

    def sections(self, key: str, keys: Sequence[str]) -> list["Section"]:
        """Read a list of mappings; at least one."""
        node = self._values[key]
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.refuse(node, f"{key}: must be a list with at least one item")
        return [Section(item, self._source, f"{key}[{place}]", keys) for place, item in enumerate(node.value)]

    def slug(self, key: str) -> str:
        """Read an identifier chosen by operators."""
        return self._slug(self._values[key], key)

    def slugs(self, key: str) -> tuple[str, ...]:
        """Read a list of identifiers; at least one, none twice."""
        node = self._values[key]
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.refuse(node, f"{key} must be a list with at least one identifier")
        found: list[str] = []
        for item in node.value:
            slug = self._slug(item, key)
            if slug in found:
                self.refuse(item, f"{key} names {slug} twice; remove one")
            found.append(slug)
        return tuple(found)

    def text(self, key: str) -> str:
        """Read a name: one line of visible text."""
        text = self._scalar(self._values[key], key, "text", text_only=True).strip()
        if not text or len(text) > TEXT_MAX_CHARS or not text.isprintable():
            self.refuse(key, f"{key} must be 1 to {TEXT_MAX_CHARS} printable characters on one line")
        return text

    def pattern(self, key: str, expected: re.Pattern[str], example: str) -> str:
        """Read a text that must match; `example` says how it looks."""
        text = self._scalar(self._values[key], key, f"a quoted text like {example}", text_only=True)
        if not expected.fullmatch(text):
            self.refuse(key, f"{key} is {text!r}; write it like {example}")
        return text

    def integer(self, key: str, *, at_least: int, at_most: int) -> int:
        """Read an unquoted decimal integer; `_` may group digits."""
        node = self._values[key]
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if not plain or not _INTEGER.fullmatch(node.value):
            self.refuse(node, f"{key} is {_written(node)}; write a whole number without quotes")
        number = int(node.value.replace("_", ""))
        if not at_least <= number <= at_most:
            self.refuse(node, f"{key} is {number}; it must be between {at_least} and {at_most}")
        return number

    def moment(self, key: str) -> datetime:
        """Read a moment with its time zone."""
        text = self._scalar(self._values[key], key, "a moment like 2026-10-01T10:00:00+08:00")
        if not _MOMENT.fullmatch(text):
            self.refuse(key, f"{key} is {text!r}; write a moment like 2026-10-01T10:00:00+08:00")
        if not _ZONE.search(text):
            self.refuse(key, f"{key} is {text!r}, without a time zone; write it, e.g. {text}+08:00")
        try:
            return datetime.fromisoformat(text.upper())
        except ValueError as error:
            self.refuse(key, f"{key} is {text!r}: {error}")

    def _slug(self, node: yaml.Node, key: str) -> str:
        text = self._scalar(node, key, "an identifier")
        if not SLUG.fullmatch(text):
            self.refuse(
                node,
                f"{key} is {text!r}; write 2 to 63 of a-z, 0-9 and -, the first a letter or digit",
            )
        return text

    def _scalar(self, node: yaml.Node, key: str, wanted: str, *, text_only: bool = False) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, f"{key} must be {wanted}")
        if text_only and node.tag != _TEXT_TAG:
            self.refuse(node, f"{key} is {node.value}, which YAML does not read as text; put it in quotes")
        return str(node.value)


def _written(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _suggestion(key: yaml.Node, keys: Sequence[str]) -> str:
    near = difflib.get_close_matches(key.value, keys, 1) if isinstance(key.value, str) else []
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(keys)}"
