"""Reading and looking up a URL that somebody else gave us to call.

The grammar is narrow on purpose: what two readers could understand differently (octal or decimal
hosts, userinfo, backslashes, trailing dots, Unicode) is refused with a word on how to write it.
Names are looked up here and nowhere else, and whoever connects uses the address that was checked.
"""

import asyncio
import contextlib
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple, TypeAlias

from couponsvc.support.public_addresses import AddressPolicy

URL_MAX_CHARS: Final = 2_048
NAME_MAX_CHARS: Final = 253
HTTPS_PORT: Final = 443
HTTP_PORT: Final = 80
PORT_MIN: Final = 1_024
"""Below it only the two ports of HTTP: no mail, no SSH, no DNS can be addressed."""
PORT_MAX: Final = 65_535
LOOKUP_S: Final = 5.0
"""How long a name may take to be looked up when it is registered: the resolver's own first timeout."""
LOOKUPS_MAX_COUNT: Final = 256
"""Names looked up at once, a thread each, some 50 kB; names that answer take milliseconds."""
LOOKUPS_SLOW_MAX_COUNT: Final = 64
"""Slow names looked up at once; the other threads are for those that answer, or were never asked for."""
LOOKUP_SLOW_S: Final = 1.0
"""A name whose last look-up took longer is slow."""
SLOW_NAMES_MAX_COUNT: Final = 4_096
"""Remembered; the one that was slow the longest time ago is forgotten first."""
ADDRESSES_MAX_COUNT: Final = 64
"""Of one name. A receiver has a handful."""

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?P<fragment>#.*)?",
    re.DOTALL,
)
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_PATH_AND_QUERY: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
"""RFC 3986 §3.3, §3.4."""
_NAME: Final = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)
_LOOKS_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Hosts that some readers take for an IPv4 address (WHATWG URL, ends-in-a-number checker)."""


class UrlRefused(ValueError):
    """The URL is not called. The text says what to write instead; it names no address looked up."""


class TooManyLookUps(OSError):
    """LOOKUPS_MAX_COUNT names are being looked up, or LOOKUPS_SLOW_MAX_COUNT slow ones and this is one."""


class Target(NamedTuple):
    """A URL as it is called."""

    secure: bool
    host: str
    """Name in lower case, or an address without brackets."""
    port: int
    path: str
    """With the query; begins with a slash."""
    literal: bool
    """The host is an address."""

    @property
    def authority(self) -> str:
        """The `Host` header (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = HTTPS_PORT if self.secure else HTTP_PORT
        return host if self.port == default else f"{host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """What connections are kept by: scheme, host and port."""
        return f"{'https' if self.secure else 'http'}://{self.authority}"


LookUp: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
"""Every address of a name. Raises OSError where there is none."""


def read_url(url: str, policy: AddressPolicy) -> Target:
    """Take a URL apart and check its form; nothing is looked up.

    Raises:
        UrlRefused: the form is refused, or the host is an address that is.
    """
    target = _split(url)
    if not target.secure and not policy.allow_private:
        raise UrlRefused("Use https: events hold what only the receiver may read.")
    if not (target.port == (HTTPS_PORT if target.secure else HTTP_PORT) or target.port >= PORT_MIN):
        raise UrlRefused(f"Use the port {HTTPS_PORT}, or one from {PORT_MIN} on.")
    if target.literal and (reason := policy.refuse_reason(target.host)) is not None:
        raise UrlRefused(f"The host is {reason}; use one that is reachable from the public internet.")
    return target


async def check_url(url: str, policy: AddressPolicy, *, look_up: LookUp | None = None) -> None:
    """Check a URL before it is kept: its form, and every address that its name has now.

    It is checked again whenever it is called, because names move.

    Raises:
        UrlRefused: it would not be called; the text is fit for a 422.
    """
    target = read_url(url, policy)
    if target.literal:
        return
    try:
        async with asyncio.timeout(LOOKUP_S):
            await allowed_addresses(target, policy, look_up or look_up_by_system)
    except TooManyLookUps:
        raise UrlRefused("Too many names are being looked up; try again in a minute.") from None
    except TimeoutError:
        raise UrlRefused(f"The host's name could not be looked up within {LOOKUP_S:.0f} s.") from None
    except OSError:
        raise UrlRefused("The host's name has no address; register it in the DNS first.") from None


async def allowed_addresses(target: Target, policy: AddressPolicy, look_up: LookUp) -> Sequence[str]:
    """Where a target may be reached now, in the order in which to try.

    One refused address refuses them all: a name that mixes public and internal addresses is either
    a mistake or an attempt to have the second one used.

    Raises:
        UrlRefused: an address is refused.
        OSError: the name has no address, or the resolver failed.
    """
    if target.literal:
        return [target.host]
    addresses = await look_up(target.host)
    if not 0 < len(addresses) <= ADDRESSES_MAX_COUNT:
        raise OSError("the name has no address, or too many")
    for address in addresses:
        if (reason := policy.refuse_reason(address)) is not None:
            raise UrlRefused(f"The host's name leads to {reason}; point it at public addresses only.")
    return addresses


class NameLookup:
    """Looks names up with the system's resolver, in threads of its own.

    The event loop's threads are few, and a name server that never answers holds one for half a
    minute: nobody else's look-up must wait behind it. Those who ask for the same name at once share
    one look-up. The threads are daemons, so that they do not hold up the end of the process.

    Names that were slow share LOOKUPS_SLOW_MAX_COUNT threads. So whoever wants to take all of them needs
    as many names as there are threads, each of which answered when it was registered and hangs for the
    first time, within the half minute that one look-up takes.
    """

    def __init__(self) -> None:
        self._running: Final[dict[str, asyncio.Future[Sequence[str]]]] = {}
        self._slow: Final[OrderedDict[str, None]] = OrderedDict()

    async def __call__(self, name: str) -> Sequence[str]:
        """Every address of a name, in the resolver's order (RFC 6724).

        Raises:
            TooManyLookUps: it was not looked up.
            OSError: it has none, or the resolver failed.
        """
        running = self._running.get(name)
        if running is None or running.get_loop() is not asyncio.get_running_loop():
            if not self._has_room(name):
                raise TooManyLookUps("too many names are being looked up")
            running = self._running[name] = self._start(name)
        return await asyncio.shield(running)

    def _has_room(self, name: str) -> bool:
        slow_full = name in self._slow and (
            sum(running in self._slow for running in self._running) >= LOOKUPS_SLOW_MAX_COUNT
        )
        return len(self._running) < LOOKUPS_MAX_COUNT and not slow_full

    def _remember(self, name: str, took_s: float) -> None:
        self._slow.pop(name, None)
        if took_s > LOOKUP_SLOW_S:
            self._slow[name] = None
            if len(self._slow) > SLOW_NAMES_MAX_COUNT:
                self._slow.popitem(last=False)

    def _start(self, name: str) -> "asyncio.Future[Sequence[str]]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[str]] = loop.create_future()
        began_s = loop.time()

        def finish(addresses: Sequence[str] | OSError) -> None:
            self._running.pop(name, None)
            self._remember(name, loop.time() - began_s)
            if isinstance(addresses, OSError):
                future.set_exception(addresses)
                future.exception()  # whoever asked may have gone
            else:
                future.set_result(addresses)

        def ask() -> None:
            result = _ask_system(name)
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(finish, result)

        threading.Thread(target=ask, name="name look-up", daemon=True).start()
        return future


look_up_by_system: Final = NameLookup()
"""One for the process, so that the bound is the process's."""


def _ask_system(name: str) -> Sequence[str] | OSError:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error if isinstance(error, OSError) else OSError("no name")
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@lru_cache(maxsize=4_096)
def _split(url: str) -> Target:
    if len(url) > URL_MAX_CHARS:
        raise UrlRefused(f"Use a URL of at most {URL_MAX_CHARS} characters.")
    if not (url.isascii() and url.isprintable()):
        raise UrlRefused("Use ASCII: the host in its xn-- form (RFC 5891), the rest percent-encoded.")
    parts = _URL.fullmatch(url)
    scheme = parts["scheme"].lower() if parts else ""
    if parts is None or scheme not in {"https", "http"}:
        raise UrlRefused("Use an absolute URL that begins with https://.")
    if "@" in parts["authority"]:
        raise UrlRefused("Leave user and password out; deliveries are signed instead.")
    if parts["fragment"] is not None:
        raise UrlRefused("Leave the fragment (#…) out; it is never sent.")
    place = _HOST_AND_PORT.fullmatch(parts["authority"])
    if place is None:
        raise UrlRefused("Write the host as a name or address, and after a colon its port.")
    if _PATH_AND_QUERY.fullmatch(parts["target"]) is None:
        raise UrlRefused("Percent-encode what RFC 3986 does not allow in path and query.")
    secure = scheme == "https"
    port = int(place["port"] or (HTTPS_PORT if secure else HTTP_PORT))
    if not 0 < port <= PORT_MAX:
        raise UrlRefused(f"Use a port from 1 to {PORT_MAX}.")
    host, literal = _read_host(place["host"].lower())
    target = parts["target"]
    return Target(secure, host, port, target if target.startswith("/") else f"/{target}", literal)


def _read_host(host: str) -> tuple[str, bool]:
    """`(host, whether it is an address)`."""
    bracketed = host.startswith("[")
    if bracketed or _LOOKS_NUMERIC.fullmatch(host):
        try:
            address = ip_address(host[1:-1] if bracketed else host)
        except ValueError:
            address = None
        if address is None or isinstance(address, IPv6Address) != bracketed or "%" in host:
            raise UrlRefused("Write an address in its usual form: four decimal numbers, or IPv6 in brackets.")
        return str(address), True
    if host.endswith("."):
        raise UrlRefused("Leave the dot at the end of the host out.")
    if len(host) > NAME_MAX_CHARS or _NAME.fullmatch(host) is None:
        raise UrlRefused("The host is not a name of the DNS.")
    return host, False
