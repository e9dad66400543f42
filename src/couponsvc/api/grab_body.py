"""The body of a grab: decoded strictly, once, with a compiled schema."""

import json
import re
from typing import Final

import msgspec

from couponsvc import limits

_PERSON_TOKEN: Final = re.compile(rf"[\x21-\x7e]{{1,{limits.PERSON_TOKEN_MAX_CHARS}}}").fullmatch
_OUT_REQUEST_NO: Final = re.compile(rf"[A-Za-z0-9_\-|*@.:]{{1,{limits.OUT_REQUEST_NO_MAX_CHARS}}}").fullmatch
_LABEL: Final = re.compile(rf"[\x21-\x7e]{{1,{limits.CHANNEL_MAX_CHARS}}}").fullmatch
QUOTES_PER_MEMBER: Final = 4


class GrabBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a partner sends. Optional members may be left out or null."""

    person_token: str
    out_request_no: str
    channel: str | None = None
    region: str | None = None


_decode: Final = msgspec.json.Decoder(GrabBody, strict=True).decode


class InvalidBody(ValueError):
    """The body is not a valid grab; the message says what to correct."""


def read_grab_body(body: bytes) -> GrabBody:
    """Decode and check a body.

    Raises:
        InvalidBody: not JSON, not an object, a member missing, unknown, twice, or out of its form.
    """
    try:
        grab = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidBody(f"{error}.") from None
    member_count = 2 + (grab.channel is not None) + (grab.region is not None)
    if b"\\" in body or body.count(b'"') != QUOTES_PER_MEMBER * member_count:
        _refuse_duplicates(body)
    if _PERSON_TOKEN(grab.person_token) is None:
        raise InvalidBody(
            f"person_token must be 1 to {limits.PERSON_TOKEN_MAX_CHARS} visible ASCII characters."
        )
    if _OUT_REQUEST_NO(grab.out_request_no) is None:
        raise InvalidBody(
            f"out_request_no must be 1 to {limits.OUT_REQUEST_NO_MAX_CHARS} characters "
            "of A-Z a-z 0-9 _ - | * @ . :"
        )
    for name, value in (("channel", grab.channel), ("region", grab.region)):
        if value is not None and _LABEL(value) is None:
            raise InvalidBody(f"{name} must be 1 to {limits.CHANNEL_MAX_CHARS} visible ASCII characters.")
    return grab


def _refuse_duplicates(body: bytes) -> None:
    """Refuse a member given twice: readers disagree on which one counts (RFC 8259 §4)."""
    seen: set[str] = set()
    for name, _ in json.loads(body, object_pairs_hook=list):
        if name in seen:
            raise InvalidBody(f"{name} is given twice; send it once.")
        seen.add(name)
