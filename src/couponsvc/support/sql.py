"""Named SQL: plain statements in `.sql` files, found by name.

A file holds blocks of the form::

    -- name: insert_vouchers :many
    -- One sentence on what it does.
    -- Params: $1 int[] drop_no, …
    SELECT …;

`:many` returns rows, `:one` at most one row, `:value` one scalar, `:execute` nothing.
"""

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

_NAME = re.compile(r"^-- name: (\w+) :(many|one|value|execute)\s*$", re.MULTILINE)


class SqlError(ImportError):
    """A `.sql` file has a duplicate, empty or missing name."""


@dataclass(frozen=True, slots=True)
class Query:
    """One statement with its name and the shape of its result."""

    name: str
    shape: str
    sql: str


class Queries:
    """The queries of one file: `Queries("couponsvc.ledger", "commit")["insert_vouchers"]`."""

    def __init__(self, package: str, file: str) -> None:
        """Load `<package>/sql/<file>.sql`.

        Raises:
            SqlError: duplicate name or a block without a statement.
        """
        self.file: Final = f"{package}/sql/{file}.sql"
        text = files(package).joinpath("sql", f"{file}.sql").read_text("utf-8")
        self._queries: Final[dict[str, Query]] = {}
        heads = list(_NAME.finditer(text))
        for head, following in zip(heads, [*heads[1:], None], strict=True):
            body = text[head.end() : following.start() if following else len(text)].strip()
            statement = "\n".join(
                line for line in body.splitlines() if not line.lstrip().startswith("--")
            ).strip()
            name = head.group(1)
            if name in self._queries or not statement:
                message = f"{self.file}: {name} is {'defined twice' if statement else 'empty'}"
                raise SqlError(message)
            self._queries[name] = Query(name, head.group(2), statement)

    def __getitem__(self, name: str) -> str:
        """SQL text of a query.

        Raises:
            SqlError: no such name in the file.
        """
        try:
            return self._queries[name].sql
        except KeyError:
            message = f"{self.file} has no query named {name}; it has {sorted(self._queries)}"
            raise SqlError(message) from None

    def all(self) -> tuple[Query, ...]:
        """Every query of the file, for tests that prepare them all."""
        return tuple(self._queries.values())
