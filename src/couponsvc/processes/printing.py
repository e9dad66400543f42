"""How tools print what they found: as a table for people, as JSON for programs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import typer


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print these columns of the rows; a table is as wide as what is in it."""
    table = [{name: plain(row[name]) for name in columns} for row in rows]
    if as_json:
        print_json(table)
        return
    lines = [list(columns), *([text(row[name]) for name in columns] for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def plain(value: object) -> object:
    """A value as JSON has it: moments as RFC 3339."""
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def text(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
