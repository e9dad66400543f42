"""What a signature covers: the component list of `Signature-Input`, and the base built from it."""

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Final

METHOD: Final = b"@method"
PATH: Final = b"@path"
QUERY: Final = b"@query"
AUTHORITY: Final = b"@authority"
SCHEME: Final = b"@scheme"
REQUEST_TARGET: Final = b"@request-target"
TARGET_URI: Final = b"@target-uri"
CONTENT_DIGEST: Final = b"content-digest"

_ALWAYS_DERIVED: Final = frozenset({METHOD, PATH, QUERY})
_SELDOM_DERIVED: Final = frozenset({AUTHORITY, SCHEME, REQUEST_TARGET, TARGET_URI})
_FIELD_NAME: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]++")
_NAME: Final = re.compile(rb'"([^"]*+)"')

COMPONENTS_MAX_COUNT: Final = 32
"""A request of ours has at most about ten things worth covering."""

DEFAULT_PORTS: Final = {b"http": b":80", b"https": b":443"}


class NotCovered(ValueError):
    """A component list that is not accepted; the message says what to change."""


class Coverage:
    """A checked component list; made once per distinct list, used per request.

    Raises:
        NotCovered: too long, a component twice, unknown or with parameters, or `"@method"`
            or `"@path"` missing.
    """

    __slots__ = (
        "covers_body",
        "covers_query",
        "derives_more",
        "fields",
        "line_count",
        "lines",
        "pick",
        "text",
    )

    def __init__(self, text: bytes) -> None:
        """Check `text`, the canonical inner list, e.g. `("@method" "@path")`."""
        names = tuple(_NAME.findall(text))
        if b"(" + b" ".join(b'"' + name + b'"' for name in names) + b")" != text:
            raise NotCovered(
                "component parameters (;sf, ;bs, ;key, ;req, ;tr, ;name) are not accepted: leave them out"
            )
        if len(names) > COMPONENTS_MAX_COUNT:
            raise NotCovered(f"more than {COMPONENTS_MAX_COUNT} components are covered: cover fewer")
        if len(set(names)) != len(names):
            raise NotCovered("a component is covered twice: name each once")
        for required in (METHOD, PATH):
            if required not in names:
                raise NotCovered(f'"{required.decode()}" is not covered: add it to the signature')
        self.text: Final = text
        self.fields: Final = tuple(name for name in names if not name.startswith(b"@"))
        """Header fields among the components."""
        for name in names:
            _check_name(name)
        self.covers_query: Final = QUERY in names
        self.covers_body: Final = CONTENT_DIGEST in names
        self.derives_more: Final = not _SELDOM_DERIVED.isdisjoint(names)
        self.line_count: Final = len(names)
        self.lines: Final = b"".join(b'"' + name.replace(b"%", b"%%") + b'": %b\n' for name in names)
        """Format of the signature base, up to its last line."""
        self.pick: Final[Callable[[dict[bytes, bytes]], tuple[bytes, ...]]] = itemgetter(*names)
        """Values of all components, in order, from a message's values by name."""


def _check_name(name: bytes) -> None:
    if name.startswith(b"@"):
        if name not in _ALWAYS_DERIVED and name not in _SELDOM_DERIVED:
            raise NotCovered(f"component {_shown(name)} is not accepted: leave it out")
    elif not _FIELD_NAME.fullmatch(name):
        raise NotCovered(f"component {_shown(name)} is not a lower-case field name")


def _shown(name: bytes) -> str:
    return f'"{name[:64].decode("ascii", "replace")}"'


def derive_more(values: dict[bytes, bytes], query: bytes, scheme: bytes) -> None:
    """Add the components that few signatures cover (RFC 9421 §2.2.2 to §2.2.5).

    `"@target-uri"` and `"@scheme"` are as this server sees them; behind a proxy that ends
    TLS they match only where the server is told of it (X-Forwarded-Proto).
    """
    authority = values.get(b"host", b"").strip(b" \t").lower()
    default_port = DEFAULT_PORTS.get(scheme)
    if default_port is not None and authority.endswith(default_port):
        authority = authority[: -len(default_port)]
    target = values[PATH] + (b"?" + query if query else b"")
    values[AUTHORITY] = authority
    values[TARGET_URI] = scheme + b"://" + authority + target
    values[SCHEME] = scheme
    values[REQUEST_TARGET] = target
