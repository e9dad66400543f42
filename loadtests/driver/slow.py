"""Partners on bad lines, on sockets of their own: one trickles its request, one never reads.

A service that gives each of them a thread, an unbounded buffer or a place in a bounded pool serves
nobody else meanwhile. What normal persons are told, and how soon, is what these two are for.
"""

import contextlib
import struct
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import gevent  # type: ignore[import-untyped] # gevent ships no types
from gevent import socket

from loadtests.clock import RunClock
from loadtests.driver.requests import SignedRequest
from loadtests.driver.wire import open_socket
from loadtests.driver.writing import Reply
from loadtests.persons.traits import Stall, Trickle
from loadtests.records import ABANDONED

TIMEOUT_S: Final = 15.0
_RECEIVE_BUFFER_BYTES: Final = 2_048
"""As small as the system allows: the server notices soon that nobody reads."""
_SEND_PATIENCE_S: Final = 1.0
"""A request that cannot be sent for so long will not be: the server has stopped reading, too."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with 0 s: the connection ends with a reset, as a crashed partner's does."""
_HEAD_END: Final = b"\r\n\r\n"
_ANSWER_MAX_BYTES: Final = 64 * 1024


class Line:
    """Connections to one deployment, outside of any pool."""

    def __init__(self, base_url: str, clock: RunClock) -> None:
        self._parts: Final = urlsplit(base_url)
        self.host: Final = self._parts.netloc
        self._clock: Final = clock

    def trickle(self, request: SignedRequest, traits: Trickle, *, finishes: bool) -> Reply:
        """Send a request byte by byte; unless it `finishes`, keep the last byte and hang up."""
        sent_ms = self._clock.wall_ms()
        try:
            with self._open() as line:
                data = request.raw(self.host, keep_alive=False)
                whole = len(data) if finishes else len(data) - 1
                for start in range(0, whole, traits.bytes_at_once_count):
                    line.sendall(data[start : min(start + traits.bytes_at_once_count, whole)])
                    gevent.sleep(traits.every_ms / 1_000)
                if not finishes:
                    gevent.sleep(traits.hold_s)
                    return Reply(sent_ms, self._clock.wall_ms(), code=ABANDONED)
                status, body = _read_answer(line)
                return Reply(sent_ms, self._clock.wall_ms(), status, body)
        except OSError:  # closed by the server, or no connection at all: nothing was answered
            return Reply(sent_ms, self._clock.wall_ms(), code="" if finishes else ABANDONED)

    def stall(self, requests: Iterator[SignedRequest], traits: Stall) -> Iterator[Reply]:
        """Send requests one behind the other and read nothing; one reply each, all abandoned."""
        pending: list[float] = []
        with contextlib.suppress(OSError), self._open(_RECEIVE_BUFFER_BYTES) as line:
            line.settimeout(_SEND_PATIENCE_S)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            with contextlib.suppress(OSError):
                for request in requests:
                    pending.append(self._clock.wall_ms())
                    line.sendall(request.raw(self.host))
            gevent.sleep(traits.hold_s)
        answered_ms = self._clock.wall_ms()
        for sent_ms in pending:
            yield Reply(sent_ms, answered_ms, code=ABANDONED)

    def _open(self, receive_buffer_bytes: int = 0) -> socket.socket:
        return open_socket(self._parts, TIMEOUT_S, receive_buffer_bytes=receive_buffer_bytes)


def _read_answer(line: socket.socket) -> tuple[int, bytes]:
    """Status and body of the only answer on a connection that the server closes after it."""
    data = b""
    while len(data) < _ANSWER_MAX_BYTES and (piece := line.recv(4_096)):
        data += piece
    head, _, body = data.partition(_HEAD_END)
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():  # noqa: PLR2004 - version and status
        return 0, b""
    return int(words[1]), body
