"""The books of the demo's partner: what it was told, kept so that being killed loses nothing.

SQLite, because a partner answers a webhook only once the event is in its own database; the event's
id is the primary key, so that hearing twice changes nothing.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS events (
  id TEXT PRIMARY KEY, type TEXT NOT NULL, drop_id TEXT, sequence INTEGER, received_ms INTEGER NOT NULL,
  body BLOB NOT NULL, again_count INTEGER NOT NULL DEFAULT 0, other_bytes_count INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS vouchers (
  voucher_id TEXT NOT NULL, event_id TEXT NOT NULL, receipt TEXT NOT NULL, PRIMARY KEY (voucher_id, event_id)
);
"""
_REMEMBER: Final = """
INSERT INTO events (id, type, drop_id, sequence, received_ms, body) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
  again_count = again_count + 1, other_bytes_count = other_bytes_count + (body <> excluded.body)
RETURNING again_count
"""


class HeardEvent(NamedTuple):
    """One event, as it was first heard."""

    event_id: str
    type: str
    drop_id: str | None
    sequence: int | None
    """Of the drop, for this partner: 1, 2, 3 …"""
    received_ms: int
    again_count: int
    """How often it came again."""
    other_bytes_count: int
    """How often it came again with other bytes; must be 0."""


class HeardVoucher(NamedTuple):
    """One voucher, as an event told of it."""

    voucher_id: str
    receipt: str
    received_ms: int
    """When its event was first heard, Unix time."""


class _Data(msgspec.Struct):
    drop_id: str | None = None
    vouchers: tuple[msgspec.Raw, ...] = ()


class _Envelope(msgspec.Struct):
    id: str
    type: str
    data: _Data
    sequence: str | None = None


class _Voucher(msgspec.Struct):
    voucher_id: str


class PartnerLedger:
    """A partner's database; a context. Not for use by several threads.

    Raises:
        sqlite3.Error: from every call, if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._database: Final = sqlite3.connect(path)
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def remember(self, body: bytes, received_ms: int) -> bool:
        """Commit a verified event; whether it was new.

        Raises:
            msgspec.MsgspecError: it is no event of ours.
        """
        event = msgspec.json.decode(body, type=_Envelope)
        sequence = None if event.sequence is None else int(event.sequence)
        with self._database:  # commits at the end, or undoes all of it
            ((again_count,),) = self._database.execute(
                _REMEMBER, (event.id, event.type, event.data.drop_id, sequence, received_ms, body)
            ).fetchall()
            if not again_count:
                self._database.executemany(
                    "INSERT INTO vouchers (voucher_id, event_id, receipt) VALUES (?, ?, ?)",
                    _voucher_rows(event),
                )
        return not again_count

    def vouchers_count(self) -> int:
        """Tellings of vouchers so far."""
        (count,) = self._database.execute("SELECT count(*) FROM vouchers").fetchone()
        return int(count)

    def events(self) -> list[HeardEvent]:
        """Everything heard, in no particular order."""
        rows = self._database.execute(
            "SELECT id, type, drop_id, sequence, received_ms, again_count, other_bytes_count FROM events"
        )
        return [HeardEvent(*row) for row in rows]

    def vouchers(self) -> list[HeardVoucher]:
        """Every telling of a voucher; a voucher told by two events stands here twice."""
        rows = self._database.execute(
            "SELECT v.voucher_id, v.receipt, e.received_ms FROM vouchers v JOIN events e ON e.id = v.event_id"
        )
        return [HeardVoucher(*row) for row in rows]


def _voucher_rows(event: _Envelope) -> Iterable[tuple[str, str, str]]:
    for raw in event.data.vouchers:
        voucher = msgspec.json.decode(raw, type=_Voucher)
        yield voucher.voucher_id, event.id, bytes(raw).decode()
