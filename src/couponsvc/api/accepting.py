"""Taking connections: as many per turn of the loop as have come, within a bound.

libuv, and so uvloop, takes one connection per turn (libuv #3696; seen with 1.52): right where turns take
microseconds. In a rush a turn takes ten milliseconds, because hundreds of grabs are read, decided and
answered in it, and a thousand people who connect meanwhile would wait for ten seconds before anybody
reads what they ask. Here a turn takes up to `ACCEPTS_PER_TURN_COUNT` of them.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger("accepting")

ACCEPTS_PER_TURN_COUNT: Final = 32
"""Three milliseconds of a turn at most; whoever floods us with connections holds nobody up for longer."""
PAUSE_S: Final = 1.0
"""When the system has no descriptor or no memory for one more; as long as asyncio waits then."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BROKEN: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
"""Of the listener itself. Any other error is of the connection that was to be taken (accept(2))."""


class Acceptor:
    """Takes the connections of one listening socket; in the place of `asyncio.Server` for uvicorn.

    Args:
        listener: bound; this makes it listen. It stays its owner's to close.
        make_protocol: makes what serves a connection.
        backlog_count: connections that may wait to be taken.

    Raises:
        OSError: the socket cannot listen.
    """

    def __init__(
        self, listener: socket.socket, make_protocol: Callable[[], asyncio.Protocol], backlog_count: int
    ) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._listener: Final = listener
        self._make_protocol: Final = make_protocol
        self._serving: Final[set[asyncio.Task[object]]] = set()
        self._closed = False
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        listener.listen(backlog_count)
        self._watch()

    def close(self) -> None:
        """Take no more; those that were taken go on."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Return when those that were taken are all being served."""
        while self._serving:
            await asyncio.wait(self._serving)

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._take)

    def _take(self) -> None:
        for _ in range(ACCEPTS_PER_TURN_COUNT):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _BROKEN:
                    self.close()
                    raise
                if error.errno not in _EXHAUSTED:
                    continue  # its client left before we came to it
                log.warning("no connection can be taken", error=error.strerror, again_in_s=PAUSE_S)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(PAUSE_S, self._watch)
                return
            connection.setblocking(False)  # noqa: FBT003 - as above
            task = self._loop.create_task(self._serve(connection), name="connection that is taken")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """Hand it to a protocol of its own; what goes wrong is this connection's alone."""
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except Exception as error:  # noqa: BLE001 - as said
            connection.close()
            log.warning("a connection could not be served", error=type(error).__name__)
