"""What a run leaves on disk: every answer, samples of every drop, and the facts of the run.

A run directory (`var/load/<scenario>-<utc time>/`) holds `records-<worker>.bin`, `samples.bin` and
`facts.json`. The oracle judges from these files and from the deployment's API, and from nothing
else. The binary files are a sequence of msgpack messages, each behind its length (4 bytes, big
endian): they can be appended to, concatenated, sent in pieces, and read in bounded memory.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import msgspec

GRAB: Final = "grab"
"""`Answered.action` of a POST of a grab."""
LOOK_UP: Final = "look_up"
"""`Answered.action` of a GET of `/v1/drops/{drop_id}/grabs/{out_request_no}`."""
ABANDONED: Final = "abandoned"
"""`Answered.code` beside status 0: the person hung up on purpose before the answer came."""
ORACLE: Final = "oracle"
"""`Answered.worker` of what the oracle asked after the run."""
OPERATOR: Final = "operator"
"""The clock, in `RunFacts.clocks`, by which operations and samples were timed."""

FACTS_FILE: Final = "facts.json"
SAMPLES_FILE: Final = "samples.bin"
RECORDS_PATTERN: Final = "records-*.bin"
ASKED_FILE: Final = "asked-again.bin"
"""What the oracle asked after the run, and was told."""

BUFFER_BYTES: Final = 256 * 1024
"""Written at once: a record is about 150 bytes, so a kill loses at most some 1,700 of them."""
READ_BYTES: Final = 1024 * 1024
MESSAGE_MAX_BYTES: Final = 64 * 1024
"""A record is below 1 KiB; a longer one means that the file is no record file."""
_LENGTH: Final = struct.Struct(">I")


class Answered(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One request and what was answered, or that nothing was.

    Times are Unix time in milliseconds by the worker's clock, which must not jump during a run
    (take the wall clock once and add a monotonic clock to it). They are compared in order only
    within one worker; between workers and with the deployment only within a tolerance.
    """

    sent_ms: float
    """Taken before the first byte was sent."""
    answered_ms: float
    """Taken when the answer was complete, or given up."""
    intended_ms: float
    """Open loop: when the request was due; otherwise equal to `sent_ms`."""
    worker: str
    """Whose clock: unique per process of a run."""
    action: str
    """GRAB, LOOK_UP, or another word of the scenario; budgets and rules look at GRAB."""
    drop_id: str
    person_token: str
    out_request_no: str
    status: int
    """0: no answer was seen (timeout, connection lost; on purpose where `code` is ABANDONED)."""
    code: str = ""
    """The problem's code; empty otherwise."""
    retryable: bool | None = None
    """The problem's member; None where there was no problem."""
    voucher: bytes = b""
    """Verbatim: the body of a 200 or 201, or the member `voucher` of a 409 `person_limit`."""


class DropSample(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What `GET /v1/drops/{drop_id}` said; the observer asks about twice a second."""

    drop_id: str
    at_ms: float
    """When the answer had arrived, by the clock OPERATOR."""
    state: str
    available: int
    pending: int
    issued: int
    quantity: int = 0
    """0: not recorded."""


class DropDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A drop of the run as it was defined when the run began."""

    drop_id: str
    quantity: int
    per_person_limit: int
    opens_ms: float
    closes_ms: float
    issued_before: int = 0
    """Vouchers that stood before the run began: rows 1..issued_before are nobody's of this run."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Something an operator did to a drop during the run, through the API; by the clock OPERATOR."""

    drop_id: str
    what: str
    """`pause`, `resume`, `close`, `restock` or `define`."""
    sent_ms: float
    answered_ms: float
    quantity_after: int = 0
    """`restock` and `define`: the drop's quantity from then on."""


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker's clock relates to the deployment's, as the worker measured it."""

    offset_ms: float = 0.0
    """Deployment's clock minus worker's."""
    tolerance_ms: float = 250.0
    """How far off that may be, either way."""


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the run was: written as `facts.json`."""

    scenario: str
    host: str
    started_ms: float
    ended_ms: float
    persons: int
    drops: Sequence[DropDefinition]
    operations: Sequence[Operation] = ()
    clocks: Mapping[str, Clock] = {}
    """By worker; one that is missing has the default tolerance and no offset."""
    exclusive: bool = True
    """Nobody but this run grabbed from these drops meanwhile, and numbers are new with every run."""
    complete: bool = True
    """Every request that was sent has a record, and every worker's arrived.

    False takes back every judgement that rests on absence.
    """
    options: Mapping[str, str] = {}
    """What was asked for: arrival, users, workers, seed …; shown in the report."""
    versions: Mapping[str, str] = {}
    """Python, locust, couponsvc; shown in the report."""


class NotRecords(ValueError):
    """A file is not what it should be; the message names it and says why."""


_Message = TypeVar("_Message", Answered, DropSample)


class Writer(Generic[_Message]):
    """Appends messages to a file; buffered, so close it or use it as a context."""

    def __init__(self, path: Path) -> None:
        self._file: Final = path.open("ab", buffering=BUFFER_BYTES)
        self._encode: Final = msgspec.msgpack.Encoder().encode
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, message: _Message) -> None:
        """Append one message."""
        data = self._encode(message)
        self._file.write(_LENGTH.pack(len(data)) + data)
        self.count += 1

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()


class RecordWriter(Writer[Answered]):
    """Appends records of answers: `records-<worker>.bin`."""


class SampleWriter(Writer[DropSample]):
    """Appends samples of drops: `samples.bin`."""


def read_records(paths: Iterable[Path], on_torn: Callable[[Path], None] | None = None) -> Iterator[Answered]:
    """Read records of answers, file by file, in the order they were written.

    A file that ends in the middle of a message (its writer was killed) is read up to there, and
    `on_torn` is told.

    Raises:
        NotRecords: a file holds something else.
    """
    decoder = msgspec.msgpack.Decoder(Answered)
    for path in paths:
        yield from _read(path, decoder, on_torn)


def read_samples(path: Path) -> Iterator[DropSample]:
    """Read samples of drops; none where the file is missing.

    Raises:
        NotRecords: the file holds something else.
    """
    if path.exists():
        yield from _read(path, msgspec.msgpack.Decoder(DropSample), None)


def _read(
    path: Path, decoder: msgspec.msgpack.Decoder[_Message], on_torn: Callable[[Path], None] | None
) -> Iterator[_Message]:
    try:
        with path.open("rb", buffering=READ_BYTES) as file:
            while head := file.read(_LENGTH.size):
                size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
                if size > MESSAGE_MAX_BYTES:
                    raise NotRecords(f"{path}: not a record file: a message of {size:,} bytes")
                data = file.read(size)
                if not size or len(data) < size:
                    if on_torn is not None:
                        on_torn(path)
                    return
                yield decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise NotRecords(f"{path}: not a record file: {error}") from error
    except OSError as error:
        raise NotRecords(f"{path}: {error.strerror}") from error


def write_facts(directory: Path, facts: RunFacts) -> None:
    """Write `facts.json` of a run directory."""
    data = msgspec.json.format(msgspec.json.encode(facts), indent=2)
    (directory / FACTS_FILE).write_bytes(data + b"\n")


def read_facts(directory: Path) -> RunFacts:
    """Read `facts.json` of a run directory.

    Raises:
        NotRecords: it is missing or not of this form.
    """
    path = directory / FACTS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunFacts)
    except OSError as error:
        raise NotRecords(f"{path}: {error.strerror}; is this a run directory?") from error
    except msgspec.MsgspecError as error:
        raise NotRecords(f"{path}: {error}") from error
