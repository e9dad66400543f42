"""The partners' own books: every number is written down before it is sent, and read again afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self


class Number(NamedTuple):
    """One number and what it was made for."""

    partner_id: str
    drop_id: str
    person_token: str
    out_request_no: str


class NumberBook:
    """A file that is only appended to. Our own process does not crash, so nothing is synced."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._file: Final = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def write(self, number: Number) -> None:
        """Write a number down; when this returns, the system has it."""
        os.write(self._file, ("\t".join(number) + "\n").encode())
        self.count += 1

    def read(self) -> Iterator[Number]:
        """Every number, in the order of writing."""
        with self._path.open(encoding="ascii") as lines:
            for line in lines:
                yield Number(*line.rstrip("\n").split("\t"))
