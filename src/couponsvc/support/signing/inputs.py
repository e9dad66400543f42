"""Read `Signature-Input`: label, covered components and parameters of each signature.

Three speeds: a value that verified a moment ago is remembered whole (clients that sign
without a nonce send the same one for a second); the usual form is read by one regular
expression; every other legal form by the complete parser in `fields`.

Nothing is remembered of a request that did not verify, so strangers cannot fill memory.
"""

import re
from typing import Final, NamedTuple

from couponsvc.support.signing.coverage import Coverage, NotCovered
from couponsvc.support.signing.fields import (
    InnerList,
    Item,
    Parameters,
    serialize_items,
    serialize_parameters,
)
from couponsvc.support.signing.keys import ALGORITHMS
from couponsvc.support.signing.refusal import SignatureRefused

REMEMBERED_MAX_COUNT: Final = 512
"""Inputs and component lists remembered; partners' clients use a handful of lists."""
KEY_ID_MAX_CHARS: Final = 128

_TEXT: Final = rb'"([ !#-:<-\[\]-~]*+)"'
_INTEGER: Final = rb"(0|[1-9][0-9]{0,14}+)"
_USUAL: Final = re.compile(
    rb"([a-z*][a-z0-9_.*-]*+)="
    rb'((\("[!#-:<-\[\]-~]++"(?: "[!#-:<-\[\]-~]++")*+\))'
    rb"(?:;(?:created=" + _INTEGER + rb"|keyid=" + _TEXT + rb"|alg=" + _TEXT + rb"|expires=" + _INTEGER + rb""
    rb"|nonce=" + _TEXT + rb"|tag=" + _TEXT + rb"))*+)"
)
"""`label=("name" …);parameter…` in canonical spelling, known parameters in any order; strings
without `;`, `"` and `\\`. Only possessive quantifiers: it cannot backtrack."""


class SignatureInput(NamedTuple):
    """One member of `Signature-Input`, checked as far as that does not depend on the request."""

    label: bytes
    prefix: bytes
    """`<label>=:`, how `Signature` starts where this is the only one."""
    coverage: Coverage
    template: bytes
    """Format of the signature base, `"@signature-params"` included."""
    created: int
    expires: int | None
    key_id: str
    algorithm: str | None


_remembered: Final[dict[bytes, SignatureInput]] = {}
_coverages: Final[dict[bytes, Coverage]] = {}

recall: Final = _remembered.get
"""The remembered reading of a `Signature-Input` value, or None."""


def remember(given: bytes, candidate: SignatureInput) -> None:
    """Keep what verified; forget everything at the bound, which costs one reading each."""
    if len(_remembered) >= REMEMBERED_MAX_COUNT:
        _remembered.clear()
    _remembered[given] = candidate
    if candidate.coverage.text not in _coverages:
        if len(_coverages) >= REMEMBERED_MAX_COUNT:
            _coverages.clear()
        _coverages[candidate.coverage.text] = candidate.coverage


def read_usual(given: bytes) -> SignatureInput | None:
    """Read a single `Signature-Input` member in its usual form; None where it is not of that form."""
    usual = _USUAL.fullmatch(given)
    if usual is None:
        return None
    label, value, components, created, key_id, algorithm, expires, nonce, tag = usual.groups()
    found_count = 6 - (created, key_id, algorithm, expires, nonce, tag).count(None)
    if value.count(b";") != found_count:  # a parameter stands twice
        return None
    return _checked(
        label,
        components,
        value,
        None if created is None else int(created),
        None if expires is None else int(expires),
        None if key_id is None else key_id.decode("ascii"),
        None if algorithm is None else algorithm.decode("ascii"),
    )


def read_member(label: bytes, member: Item | InnerList) -> SignatureInput:
    """Check a member that the complete parser read."""
    if not isinstance(member, InnerList):
        raise SignatureRefused(f"{label[:64].decode()} is not a list of components")
    if not all(isinstance(item.bare.value, str) for item in member.items):
        raise SignatureRefused("a component is not a string")
    parameters = member.parameters
    components = serialize_items(member.items)
    return _checked(
        label,
        components,
        components + serialize_parameters(parameters),
        _integer(parameters, b"created"),
        _integer(parameters, b"expires"),
        _string(parameters, b"keyid"),
        _string(parameters, b"alg"),
    )


def _integer(parameters: Parameters, name: bytes) -> int | None:
    bare = parameters.get(name)
    if bare is None:
        return None
    if not isinstance(bare.value, int):
        raise SignatureRefused(f"{name.decode()} is not an integer")
    return bare.value


def _string(parameters: Parameters, name: bytes) -> str | None:
    bare = parameters.get(name)
    if bare is None:
        return None
    if not isinstance(bare.value, str):
        raise SignatureRefused(f"{name.decode()} is not a string")
    return bare.value


def _checked(  # noqa: PLR0917 - one argument per part of the field, two callers
    label: bytes,
    components: bytes,
    value: bytes,
    created: int | None,
    expires: int | None,
    key_id: str | None,
    algorithm: str | None,
) -> SignatureInput:
    """Check what the contract demands of every signature.

    Raises:
        SignatureRefused: a parameter or a component is missing or not accepted.
    """
    if created is None or key_id is None:
        raise SignatureRefused("created and keyid are required parameters of signature-input")
    if not 0 < len(key_id) <= KEY_ID_MAX_CHARS:
        raise SignatureRefused(f"keyid may have 1 to {KEY_ID_MAX_CHARS} characters")
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise SignatureRefused(f"alg is not one of {', '.join(sorted(ALGORITHMS))}; it may be left out")
    coverage = _coverages.get(components)
    if coverage is None:
        try:
            coverage = Coverage(components)
        except NotCovered as refusal:
            raise SignatureRefused(str(refusal)) from None
    template = coverage.lines + b'"@signature-params": ' + value.replace(b"%", b"%%")
    return SignatureInput(label, label + b"=:", coverage, template, created, expires, key_id, algorithm)
