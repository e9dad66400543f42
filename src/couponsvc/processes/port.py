"""The port of `up`: found busy at once, and kept while workers come and go."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from couponsvc.processes.api import listen
from couponsvc.processes.running import EXIT_UNREACHABLE, ProcessFailed


@contextmanager
def reserve_port(host: str, port: int) -> Iterator[int]:
    """Keep a port for our API processes, which share it; port 0 takes a free one.

    The socket held here is bound and never listens, so it receives no connection, but no
    other program can take the port while all workers are down.

    Raises:
        ProcessFailed: another program listens there, or the host is not of this machine.
    """
    with listen(host, _unused(host, port)) as held:
        yield held.getsockname()[1]


def _unused(host: str, port: int) -> int:
    """The port, found free without sharing: a second `up` must not slip in beside the first."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        raise ProcessFailed(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host",
            EXIT_UNREACHABLE,
        ) from error
