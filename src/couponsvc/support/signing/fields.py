"""Structured Fields (RFC 8941), as far as `Signature-Input` and `Signature` need them.

The complete grammar of a dictionary of inner lists, for what the one regular expression in
`verify` does not cover. Every value is kept with its canonical spelling, because the
signature base holds the strict serialisation (RFC 9421 §2.3), not what was sent.

Every expression is possessive (`*+`): none can backtrack, so the time is linear.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from decimal import Decimal
from typing import Final, NamedTuple

_KEY: Final = re.compile(rb"[a-z*][a-z0-9_.*-]*+")
_STRING: Final = re.compile(rb'"(?:[ !#-\[\]-~]|\\["\\])*+"')
_NUMBER: Final = re.compile(rb"(-?)([0-9]++)(?:\.([0-9]++))?+")
_TOKEN: Final = re.compile(rb"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*+")
_BYTES: Final = re.compile(rb":([A-Za-z0-9+/=]*+):")
_BOOLEAN: Final = re.compile(rb"\?([01])")
_SPACES: Final = re.compile(rb" *+")
_COMMA: Final = re.compile(rb"[ \t]*+,[ \t]*+")
_ESCAPE: Final = re.compile(rb'\\(["\\])')

INTEGER_MAX_DIGITS: Final = 15
DECIMAL_MAX_DIGITS: Final = 12
FRACTION_MAX_DIGITS: Final = 3


class MalformedField(ValueError):
    """Not a structured field; the message says where."""


class Bare(NamedTuple):
    """A bare item. `value` is None for types that no parameter of ours has."""

    canonical: bytes
    value: str | int | bytes | None


Parameters = dict[bytes, Bare]


class Item(NamedTuple):
    """A bare item with its parameters."""

    bare: Bare
    parameters: Parameters


class InnerList(NamedTuple):
    """A list of items with parameters of its own."""

    items: tuple[Item, ...]
    parameters: Parameters


def decode_base64(text: bytes) -> bytes | None:
    """Bytes of canonical, padded base64; None for any other spelling.

    RFC 8941 §4.2.7 lets parsers be lenient; here one value has one spelling, so that no
    altered byte of a signature goes unnoticed.
    """
    try:
        decoded = a2b_base64(text)
    except Base64Error:
        return None
    return decoded if b2a_base64(decoded, newline=False) == text else None


def parse_dictionary(text: bytes) -> dict[bytes, Item | InnerList]:
    """Read a dictionary (RFC 8941 §3.2).

    Raises:
        MalformedField: not a dictionary, or a key stands twice (legal, but two signatures
            under one label are a trap; refused).
    """
    members: dict[bytes, Item | InnerList] = {}
    text = text.strip(b" ")
    position = 0
    while position < len(text):
        key, position = _key(text, position)
        if key in members:
            raise MalformedField(f"{key.decode()} stands twice")
        member: Item | InnerList
        if text[position : position + 2] == b"=(":
            member, position = _inner_list(text, position + 2)
        elif text[position : position + 1] == b"=":
            member, position = _item(text, position + 1)
        else:
            parameters, position = _parameters(text, position)
            member = Item(Bare(b"?1", None), parameters)
        members[key] = member
        if position == len(text):
            break
        comma = _COMMA.match(text, position)
        if comma is None or comma.end() == len(text):
            raise MalformedField(f"a comma and a member are missing at byte {position}")
        position = comma.end()
    return members


def serialize_items(items: tuple[Item, ...]) -> bytes:
    """Canonical form of an inner list without the list's own parameters."""
    return b"(" + b" ".join(i.bare.canonical + serialize_parameters(i.parameters) for i in items) + b")"


def serialize_parameters(parameters: Parameters) -> bytes:
    """Canonical form: `;key=value`, and `;key` alone for true (RFC 8941 §4.1.1.2)."""
    return b"".join(
        b";" + key + (b"" if bare.canonical == b"?1" else b"=" + bare.canonical)
        for key, bare in parameters.items()
    )


def _key(text: bytes, position: int) -> tuple[bytes, int]:
    key = _KEY.match(text, position)
    if key is None:
        raise MalformedField(f"a key is missing at byte {position}")
    return key[0], key.end()


def _inner_list(text: bytes, position: int) -> tuple[InnerList, int]:
    items: list[Item] = []
    while True:
        position = _skip_spaces(text, position)
        if text[position : position + 1] == b")":
            parameters, position = _parameters(text, position + 1)
            return InnerList(tuple(items), parameters), position
        item, position = _item(text, position)
        items.append(item)
        if text[position : position + 1] not in (b" ", b")"):
            raise MalformedField(f"a list is not closed at byte {position}")


def _item(text: bytes, position: int) -> tuple[Item, int]:
    bare, position = _bare(text, position)
    parameters, position = _parameters(text, position)
    return Item(bare, parameters), position


def _parameters(text: bytes, position: int) -> tuple[Parameters, int]:
    parameters: Parameters = {}
    while text[position : position + 1] == b";":
        key, position = _key(text, _skip_spaces(text, position + 1))
        bare = Bare(b"?1", None)
        if text[position : position + 1] == b"=":
            bare, position = _bare(text, position + 1)
        if key in parameters:
            raise MalformedField(f"parameter {key.decode()} stands twice")
        parameters[key] = bare
    return parameters, position


def _skip_spaces(text: bytes, position: int) -> int:
    spaces = _SPACES.match(text, position)
    return spaces.end() if spaces else position


def _bare(text: bytes, position: int) -> tuple[Bare, int]:
    for expression, read in _READERS:
        found = expression.match(text, position)
        if found is not None:
            return read(found), found.end()
    raise MalformedField(f"no value at byte {position}")


def _string(found: re.Match[bytes]) -> Bare:
    return Bare(found[0], _ESCAPE.sub(rb"\1", found[0][1:-1]).decode("ascii"))


def _number(found: re.Match[bytes]) -> Bare:
    sign, whole, fraction = found.groups()
    if fraction is None:
        if len(whole) > INTEGER_MAX_DIGITS:
            raise MalformedField("an integer is too long")
        number = int(sign + whole)
        return Bare(b"%d" % number, number)
    if len(whole) > DECIMAL_MAX_DIGITS or len(fraction) > FRACTION_MAX_DIGITS:
        raise MalformedField("a decimal is too long")
    shortest = fraction.rstrip(b"0") or b"0"
    canonical = Decimal((sign + whole + b"." + shortest).decode())
    return Bare(str(canonical).encode(), None)


def _byte_sequence(found: re.Match[bytes]) -> Bare:
    decoded = decode_base64(found[1])
    if decoded is None:
        raise MalformedField("a byte sequence is not padded, canonical base64")
    return Bare(found[0], decoded)


def _opaque(found: re.Match[bytes]) -> Bare:
    return Bare(found[0], None)


_READERS: Final[tuple[tuple[re.Pattern[bytes], Callable[[re.Match[bytes]], Bare]], ...]] = (
    (_STRING, _string),
    (_NUMBER, _number),
    (_BYTES, _byte_sequence),
    (_TOKEN, _opaque),
    (_BOOLEAN, _opaque),
)
