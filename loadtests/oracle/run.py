"""A run on disk, as the oracle reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loadtests import records
from loadtests.records import Answered, DropSample, NotRecords


class RunRecords:
    """A run directory: facts at once, samples at once, records as often as they are asked for.

    Raises:
        NotRecords: there are no facts, or no records, or they are something else.
    """

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory
        self.facts: Final = records.read_facts(directory)
        self.paths: Final = sorted(directory.glob(records.RECORDS_PATTERN))
        if not self.paths:
            raise NotRecords(f"{directory}: no {records.RECORDS_PATTERN}; did the run record anything?")
        self.samples: Final[list[DropSample]] = sorted(
            records.read_samples(directory / records.SAMPLES_FILE), key=lambda sample: sample.at_ms
        )
        self.torn: Final[set[Path]] = set()
        """Files that end in the middle of a record; known once they were read."""

    def records(self) -> Iterator[Answered]:
        """Everything that was asked during the run, file by file."""
        yield from records.read_records(self.paths, self.torn.add)

    def asked_again(self) -> Iterator[Answered]:
        """What the oracle asked; empty before it did."""
        path = self.directory / records.ASKED_FILE
        if path.exists():
            yield from records.read_records([path])
