"""Records on their way from a worker to the one place where they are judged.

A worker writes its records to a file of its own and sends the file to the master, piece by piece,
over locust's own messages: there is nothing to mount, to open in a firewall or to collect from
several machines afterwards. Each piece says where in the file it belongs and is acknowledged; few
are under way at a time, so neither side, nor the queue between them, grows while the crowd presses.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

from gevent.event import Event  # type: ignore[import-untyped] # gevent ships no types

PIECE_BYTES: Final = 256 * 1024
"""About 1,700 records; a master takes a hundred such pieces a second without effort."""
UNDER_WAY_MAX_COUNT: Final = 4
SEND_EVERY_S: Final = 0.5
"""While the run lasts, only whole pieces are sent, and looked for this often."""
PATIENCE_S: Final = 60.0
"""Without an acknowledgement for so long, the master is gone."""


class Piece(NamedTuple):
    """A part of a worker's record file."""

    worker: str
    offset: int
    data: bytes


class ShippingFailed(Exception):
    """The master took no more pieces; the records are complete only where they were written."""


class Shipper:
    """The worker's side. `run` ships what is there; `finish` ships the rest."""

    def __init__(self, worker: str, path: Path, send: Callable[[Piece], None]) -> None:
        self._worker: Final = worker
        self._path: Final = path
        self._send: Final = send
        self._acknowledged: Final = Event()
        self._sent_bytes = 0
        self._under_way: set[int] = set()

    def ship(self, *, whole_pieces: bool) -> None:
        """Send what the file holds beyond what was sent.

        Raises:
            ShippingFailed: nothing was acknowledged for PATIENCE_S.
        """
        with self._path.open("rb") as file:
            while True:
                file.seek(self._sent_bytes)
                data = file.read(PIECE_BYTES)
                if not data or (whole_pieces and len(data) < PIECE_BYTES):
                    return
                self._await_room(UNDER_WAY_MAX_COUNT - 1)
                self._under_way.add(self._sent_bytes)
                self._send(Piece(self._worker, self._sent_bytes, data))
                self._sent_bytes += len(data)

    def finish(self) -> None:
        """Send the rest and wait until everything arrived.

        Raises:
            ShippingFailed: nothing was acknowledged for PATIENCE_S.
        """
        self.ship(whole_pieces=False)
        self._await_room(0)

    def acknowledge(self, offset: int) -> None:
        """The master has written the piece at `offset`."""
        self._under_way.discard(offset)
        self._acknowledged.set()

    def _await_room(self, under_way_max_count: int) -> None:
        while len(self._under_way) > under_way_max_count:
            self._acknowledged.clear()
            if not self._acknowledged.wait(PATIENCE_S):
                raise ShippingFailed(f"{self._worker}: the master takes no more records")


class Receiver:
    """The master's side: one file per worker; a context that closes them."""

    def __init__(self, directory: Path) -> None:
        self._directory: Final = directory
        self._files: Final[dict[str, BinaryIO]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, piece: Piece) -> None:
        """Write a piece where it belongs; the same piece twice does no harm."""
        file = self._files.get(piece.worker)
        if file is None:
            file = self._files[piece.worker] = self.path(piece.worker).open("wb")
        file.seek(piece.offset)
        file.write(piece.data)

    def path(self, worker: str) -> Path:
        """Where a worker's records are."""
        return self._directory / f"records-{worker}.bin"

    def close(self) -> None:
        """Write what is buffered and close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
