"""How many connections a process may have, who leaves when there are more, and how TCP watches them.

An idle connection costs some 10 kB and a file descriptor, and nobody has to prove anything to open one.
So their number is bounded, and at the bound the newcomer is not turned away: connections that ask for
nothing yield, those that never had a grab answered first, then those idle for the longest time.
Whoever holds thousands of connections therefore only displaces its own.
"""

import contextlib
import heapq
import resource
import socket
from collections.abc import MutableSet
from typing import Final, Protocol

from couponsvc import limits
from couponsvc.api import connection_refusals as refusals


class Guest(Protocol):
    """What is to be known of a connection."""

    served: bool
    """Whether a grab of a proven partner was answered on it."""
    idle_since_s: float
    """Loop time since which nothing was answered."""

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer of ours on it."""

    def leave(self) -> None:
        """Close at once; nothing is answered on it."""


class ConnectionRoom:
    """The connections of one process, bounded.

    Args:
        max_count: how many may be open.
    """

    def __init__(self, max_count: int = limits.CONNECTIONS_MAX_COUNT) -> None:
        self._max_count: Final = max_count
        self._yield_count: Final = max(1, int(max_count * limits.CONNECTIONS_YIELD_SHARE))

    def admits(self, newcomer: Guest, all_of_them: MutableSet[Guest]) -> bool:
        """Whether `newcomer`, already among `all_of_them`, may stay; others may have left for it."""
        if len(all_of_them) <= self._max_count:
            return True
        idle = [guest for guest in all_of_them if guest is not newcomer and not guest.busy]
        for guest in heapq.nsmallest(self._yield_count, idle, key=_worth):
            all_of_them.discard(guest)  # it goes at the loop's next turn; the room is free now
            refusals.count(refusals.EVICTED)
            guest.leave()
        return len(all_of_them) <= self._max_count


def _worth(guest: Guest) -> tuple[bool, float]:
    return guest.served, guest.idle_since_s


def room_of_this_process() -> ConnectionRoom:
    """Room for as many connections as the bound and the process's file descriptors allow.

    The soft limit of descriptors is raised to the hard one: 1,024 is the usual soft limit, and what
    it protects (programs that use select) is not here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a kernel's own bound may be lower
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return ConnectionRoom()
    return ConnectionRoom(
        max(1, min(limits.CONNECTIONS_MAX_COUNT, soft - limits.CONNECTIONS_SPARE_FILES_COUNT))
    )


def let_tcp_watch(listener: socket.socket) -> None:
    """Notice clients that vanished without a word; accepted sockets inherit it from the listener (Linux)."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", limits.TCP_IDLE_S),
        ("TCP_KEEPINTVL", limits.TCP_ASK_EVERY_S),
        ("TCP_KEEPCNT", limits.TCP_UNANSWERED_MAX_COUNT),
        ("TCP_USER_TIMEOUT", limits.TCP_UNACKNOWLEDGED_S * 1_000),
    ):
        if hasattr(socket, option):  # names differ between systems
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
