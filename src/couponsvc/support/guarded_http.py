"""Posting to URLs that somebody else gave us, without being led anywhere else.

What it will not do, because the code for it is not there: follow redirects, use proxies, keep
cookies, authenticate, or hand out what a receiver said. The address is looked up and checked here,
connected to as a number, and compared with the socket's peer before the first byte is sent; TLS
still proves the URL's name. Over everything lies one deadline, so a receiver that drips a byte a
second is as bounded as one that is silent.

A bare protocol with httptools' parser rather than a client library: a library's pool resolves and
connects by itself, and costs four to ten times the CPU (docs/decisions/0015).
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple

from couponsvc import limits
from couponsvc.support.guarded_connection import Broken, Connection
from couponsvc.support.guarded_url import (
    LookUp,
    Target,
    TooManyLookUps,
    UrlRefused,
    allowed_addresses,
    look_up_by_system,
    read_url,
)
from couponsvc.support.public_addresses import AddressPolicy

ADDRESSES_TRIED_MAX_COUNT: Final = 3
"""Of a name, in the resolver's order: a dead first one costs a try, not the delivery."""
CONNECT_S: Final = 3.0
"""For each address but the last, which gets what is left: three lost SYNs are repeated within it."""
IDLE_S: Final = 30.0
"""How long an unused connection is kept; servers close them after 60 to 75 s, so we come first."""
CONNECTION_AGE_S: Final = 300.0
"""After this a connection is not used again, so that a name that moved is followed."""
IDLE_PER_ENDPOINT_MAX_COUNT: Final = limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT
IDLE_MAX_COUNT: Final = limits.DELIVERIES_IN_FLIGHT_MAX_COUNT

_LOOK_UP: Final = "looking the name up"
_CONNECT: Final = "connecting"
_EXCHANGE: Final = "waiting for the answer"


class PostResult(NamedTuple):
    """What became of a post."""

    status: int | None
    """Of the answer, where it was complete, or longer than is read; otherwise None."""
    error: str
    """Empty exactly where the status is a 2xx. For people; nothing in it comes from the receiver."""
    took_ms: int

    @property
    def accepted(self) -> bool:
        """The receiver has it."""
        return self.error == ""


class GuardedClient:
    """Posts, keeps connections for the next post, and never goes where the policy says no.

    Args:
        policy: Which addresses are refused.
        timeout_s: For a whole post: look-up, connecting, TLS, sending, the whole answer.
        answer_max_bytes: Read of an answer's body; a longer one is cut and counts by its status.
        tls: How receivers prove who they are; by default with the system's authorities.
        look_up: Gives the addresses of a name.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        timeout_s: float = limits.WEBHOOK_TIMEOUT_S,
        answer_max_bytes: int = limits.WEBHOOK_ANSWER_MAX_BYTES,
        tls: ssl.SSLContext | None = None,
        look_up: LookUp = look_up_by_system,
    ) -> None:
        self._policy: Final = policy
        self._timeout_s: Final = timeout_s
        self._answer_max_bytes: Final = answer_max_bytes
        self._tls: Final = tls or ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._look_up: Final = look_up
        self._idle: Final[dict[str, list[_Idle]]] = {}
        """By endpoint, the last used last."""
        self._idle_count = 0
        self._closed = False

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> PostResult:
        """Post once. Whatever a receiver or the network does is in the result; what we lack is raised.

        Args:
            url: As a subscription has it; checked again.
            headers: Beside `Host` and `Content-Length`, which are made here.
            body: Sent as it is.

        Raises:
            ValueError: a header could not be sent as it is (the caller's mistake).
            TooManyLookUps: nothing was tried, and nothing is known of the receiver; try again soon.
        """
        loop = asyncio.get_running_loop()
        rest = _render_headers(headers, len(body))
        began_s = loop.time()
        stage = _Stage()
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(read_url(url, self._policy), rest, body, stage)
            error = "" if status // 100 == 2 else _describe_status(status)  # noqa: PLR2004 - RFC 9110 §15.3
        except TimeoutError:
            status, error = None, f"no complete answer within {self._timeout_s:g} s ({stage.name})"
        except TooManyLookUps:
            raise
        except (UrlRefused, OSError, Broken) as failure:
            status, error = None, _describe_failure(failure, stage.name)
        return PostResult(status, error, round((loop.time() - began_s) * 1000))

    async def close(self) -> None:
        """Close the connections that are kept; posts under way end by themselves."""
        self._closed = True
        for kept in self._idle.values():
            for idle in kept:
                idle.closing.cancel()
                idle.connection.close()
        self._idle.clear()
        self._idle_count = 0

    async def _post(self, target: Target, rest: bytes, body: bytes, stage: "_Stage") -> int:
        head = _render_request_line(target) + rest
        kept = self._take(target)
        if kept is not None:
            stage.name = _EXCHANGE
            try:
                return await self._exchange(target, kept, head, body)
            except Broken:
                if kept.answer_began:
                    raise
                # It was closed while it was idle, which says nothing of the receiver.
        stage.name = _LOOK_UP
        addresses = await allowed_addresses(target, self._policy, self._look_up)
        stage.name = _CONNECT
        connection = await self._connect(target, addresses[:ADDRESSES_TRIED_MAX_COUNT])
        stage.name = _EXCHANGE
        return await self._exchange(target, connection, head, body)

    async def _exchange(self, target: Target, connection: Connection, head: bytes, body: bytes) -> int:
        try:
            status = await connection.exchange(head, body)
        except BaseException:
            connection.close()
            raise
        self._keep(target, connection)
        return status

    async def _connect(self, target: Target, addresses: Sequence[str]) -> Connection:
        """Connect to the first address that answers.

        Raises:
            OSError: the last one did not.
            UrlRefused: the connection leads elsewhere.
        """
        for address in addresses[:-1]:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(CONNECT_S):
                    return await self._connect_to(target, address)
        return await self._connect_to(target, addresses[-1])

    async def _connect_to(self, target: Target, address: str) -> Connection:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connecting.settimeout(0)
            await loop.sock_connect(connecting, (address, target.port))
            self._check_peer(connecting.getpeername()[0], address)
        except BaseException:
            connecting.close()
            raise
        _, connection = await loop.create_connection(
            lambda: Connection(self._answer_max_bytes),
            sock=connecting,
            ssl=self._tls if target.secure else None,
            server_hostname=target.host if target.secure else None,
        )
        return connection

    def _check_peer(self, peer: str, address: str) -> None:
        if ip_address(peer) != ip_address(address) or self._policy.refuse_reason(peer) is not None:
            raise UrlRefused("The connection leads elsewhere than to the address that was checked.")

    def _take(self, target: Target) -> Connection | None:
        """A kept connection that may be used, the last used first."""
        now_s = asyncio.get_running_loop().time()
        kept = self._idle.get(target.endpoint, [])
        while kept:
            idle = kept.pop()
            self._idle_count -= 1
            idle.closing.cancel()
            if idle.connection.reusable and now_s - idle.connection.made_s < CONNECTION_AGE_S:
                return idle.connection
            idle.connection.close()
        self._idle.pop(target.endpoint, None)
        return None

    def _keep(self, target: Target, connection: Connection) -> None:
        kept = self._idle.get(target.endpoint, [])
        full = self._idle_count >= IDLE_MAX_COUNT or len(kept) >= IDLE_PER_ENDPOINT_MAX_COUNT
        if self._closed or full or not connection.reusable:
            connection.close()
            return
        closing = asyncio.get_running_loop().call_later(IDLE_S, self._close_idle, target.endpoint)
        kept.append(_Idle(connection, closing))
        self._idle[target.endpoint] = kept
        self._idle_count += 1

    def _close_idle(self, endpoint: str) -> None:
        """Close what was unused the longest: timers fire in the order in which connections were kept."""
        kept = self._idle[endpoint]
        kept.pop(0).connection.close()
        self._idle_count -= 1
        if not kept:
            del self._idle[endpoint]


class _Idle(NamedTuple):
    connection: Connection
    closing: asyncio.TimerHandle


class _Stage:
    """What a post is at, for the text of a timeout."""

    name = _LOOK_UP


@lru_cache(maxsize=4_096)
def _render_request_line(target: Target) -> bytes:
    return f"POST {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n".encode("ascii")


def _render_headers(headers: Mapping[str, str], body_bytes: int) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    text = "".join(lines)
    if not (text.isascii() and text.count("\n") == text.count("\r") == len(lines)):
        raise ValueError("a header has a line break or is not ASCII")
    return f"{text}Content-Length: {body_bytes}\r\n\r\n".encode("ascii")


def _describe_status(status: int) -> str:
    if status // 100 == 3:  # noqa: PLR2004 - RFC 9110 §15.4
        return f"the receiver answered {status}: redirects are not followed, give the final URL"
    return f"the receiver answered {status}"


def _describe_failure(failure: Exception, stage: str) -> str:
    """Say what failed in words of this machine, not of the receiver's."""
    match failure:
        case UrlRefused() | Broken():
            return str(failure)
        case ssl.SSLCertVerificationError():
            return f"the receiver's certificate is refused: {failure.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {(failure.reason or 'unknown reason').replace('_', ' ').lower()}"
        case socket.gaierror():
            return f"the name could not be looked up: {failure.strerror}"
        case OSError(errno=int(number)):
            return f"{stage} failed: {os.strerror(number)}"
        case _:
            return f"{stage} failed"
