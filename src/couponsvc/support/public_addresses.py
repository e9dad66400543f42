"""Which addresses a request that somebody else asked for may be sent to.

Whoever names a URL for us to call could name one that only we can reach: a database, a neighbour, the
cloud's metadata service with its credentials (server-side request forgery). So an address is judged
by the tables of IANA's special-purpose registries (RFC 6890 and what was added since), written out
here: Python's `is_global` says yes to NAT64, 6to4 and multicast, and differs between versions; it
serves as a second fence only. IPv6 forms that carry an IPv4 address are judged by what they carry.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple


class _Range(NamedTuple):
    networks: tuple[IPv4Network | IPv6Network, ...]
    reason: str


def _range(reason: str, *networks: str) -> _Range:
    return _Range(tuple(IPv6Network(text) if ":" in text else IPv4Network(text) for text in networks), reason)


_NEVER: Final = (
    # The metadata services that are not link-local: AWS (IPv6), Google (IPv6), Alibaba, Oracle, Azure.
    _range(
        "an address of a cloud's metadata service",
        "fd00:ec2::/32",
        "fd20:ce::/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
    ),
    _range("a link-local address", "169.254.0.0/16", "fe80::/10"),
    _range("an unspecified address", "0.0.0.0/8", "::/128"),
    _range("a multicast address", "224.0.0.0/4", "ff00::/8"),
    _range("a reserved address", "240.0.0.0/4", "192.0.0.0/24", "2001::/23", "5f00::/16", "100::/32"),
    _range(
        "an address of documentation",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "2001:db8::/32",
        "3fff::/20",
    ),
    # Deprecated (RFC 7526, RFC 7059), or with an embedding that only the network's operator knows.
    _range("an address of a tunnel or translator", "2002::/16", "192.88.99.0/24", "64:ff9b:1::/48"),
)
"""Refused in every mode."""
_PRIVATE: Final = (
    _range("a loopback address", "127.0.0.0/8", "::1/128"),
    _range(
        "an address of a private network",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "198.18.0.0/15",
        "fc00::/7",
        "fec0::/10",
    ),
)
"""Refused unless private addresses are allowed."""
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
"""All that IANA has given out for use in the internet."""
_TRANSLATED: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv4-mapped and NAT64 (RFC 6052 §2.1): another way to write the IPv4 address in the last 32 bits."""
_COMPATIBLE: Final = IPv6Network("::/96")
"""IPv4-compatible: the same, but deprecated (RFC 4291 §2.5.5.1) and routed nowhere."""
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})
"""Bits 64 to 95 of an address that carries an IPv4 address for ISATAP (RFC 5214 §6.1)."""
_LOW_32: Final = 0xFFFF_FFFF
_NOT_PUBLIC: Final = "an address that is not of the public internet"


class AddressPolicy:
    """Says which addresses are refused, and why.

    Args:
        allow_private: Loopback and private networks are allowed (development). Link-local addresses,
            metadata services and what is no unicast address are refused all the same.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private: Final = allow_private

    def refuse_reason(self, address: str) -> str | None:
        """What the address is, where it is refused (`a loopback address`); None where it is allowed.

        Args:
            address: As `getaddrinfo` or `getpeername` give it. What is no address is refused.
        """
        try:
            parsed = ip_address(address)
        except ValueError:
            return "no address"
        if isinstance(parsed, IPv6Address):
            if parsed.scope_id is not None:
                return "an address with a scope"
            carried = _carried(parsed)
            if carried is not None and (reason := self._judge(carried)) is not None:
                return f"{reason} carried in IPv6"
            if any(parsed in network for network in _TRANSLATED):
                return None
        return self._judge(parsed)

    def _judge(self, address: IPv4Address | IPv6Address) -> str | None:
        for networks, reason in _NEVER:
            if any(address in network for network in networks):
                return reason
        for networks, reason in _PRIVATE:
            if any(address in network for network in networks):
                return None if self.allow_private else reason
        if not address.is_global or (isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6):
            return _NOT_PUBLIC
        return None


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside an IPv6 one; None where there is none. `::` and `::1` carry none."""
    number = int(address)
    isatap = number >> 32 & _LOW_32 in _ISATAP
    if isatap or (number > 1 and any(address in network for network in (*_TRANSLATED, _COMPATIBLE))):
        return IPv4Address(number & _LOW_32)
    return None
