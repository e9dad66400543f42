"""What is fuzzed: each target takes any bytes and asserts what must hold of the reader under test.

A refusal of the reader's own kind is fine; any other exception is a finding, and so is an answer that
a second, independent reader contradicts.
"""

import json
import re
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import http_sf
import httptools

from couponsvc import limits
from couponsvc.api.express_head import read_head
from couponsvc.api.grab_body import InvalidBody, read_grab_body
from couponsvc.api.head_rules import refusal_of_head
from couponsvc.programs.program_file import ProgramFileError, parse_program_file
from couponsvc.programs.public_key import BadPublicKey, read_public_key
from couponsvc.support.guarded_url import UrlRefused, read_url
from couponsvc.support.public_addresses import AddressPolicy
from couponsvc.support.signing import SignatureRefused, content_digest, digest_refusal
from couponsvc.support.signing.fields import InnerList, MalformedField, parse_dictionary
from couponsvc.support.signing.inputs import read_member, read_usual
from couponsvc.values.voucher import parse_voucher_id, voucher_id
from tests.fuzz.signed import ORIGINALS, accepted_as, meaning_of, read_message

Target = Callable[[bytes], None]


# --- bodies -----------------------------------------------------------------------------------
_FORMS: Final = {
    "person_token": re.compile(r"[\x21-\x7e]{1,128}"),
    "out_request_no": re.compile(r"[A-Za-z0-9_\-|*@.:]{1,64}"),
    "channel": re.compile(r"[\x21-\x7e]{1,32}"),
    "region": re.compile(r"[\x21-\x7e]{1,32}"),
}


def grab_body(data: bytes) -> None:
    """The reader of bodies agrees with the standard library's, no member twice, in both directions."""
    expected = _valid_grab(data)
    try:
        grab = read_grab_body(data)
    except InvalidBody:
        grab = None
    assert (grab is None) == (expected is None)
    if grab is not None and expected is not None:
        assert all(getattr(grab, name) == expected.get(name) for name in _FORMS)


def _valid_grab(data: bytes) -> dict[str, Any] | None:
    try:
        pairs = json.loads(data.decode(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs):
        return None
    members = dict(pairs)
    if len(members) != len(pairs) or members.keys() - _FORMS.keys():
        return None
    for name, form in _FORMS.items():
        value = members.get(name)
        if value is None and name in {"channel", "region"}:
            continue
        if not isinstance(value, str) or not form.fullmatch(value):
            return None
    return members


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written."""


# --- heads ------------------------------------------------------------------------------------
class _Reading:
    """What the HTTP parser says of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.target, self.body, self.complete_count = b"", b"", 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete_count += 1


def express_head(data: bytes) -> None:
    """What the express way reads, the HTTP parser reads alike, and our own rules would not refuse it."""
    head = read_head(data)
    if head is None:
        return
    data = data[: head.body_end].ljust(head.body_end)
    reading = _Reading(data)
    parser = reading.parser
    assert reading.complete_count == 1
    assert (reading.target, parser.get_method()) == (head.raw_path, b"POST")
    assert head.raw_path == f"/v1/drops/{head.drop_id}/grabs".encode()
    assert (parser.should_keep_alive(), parser.should_upgrade()) == (True, False)
    assert reading.body == data[head.body_begin :]
    assert {name: value.strip(b" ") for name, value in reading.fields} == {
        name: value.strip(b" ") for name, value in head.fields.items()
    }
    version = parser.get_http_version()
    assert refusal_of_head(reading.target, reading.fields, version, upgrades=False) is None


# --- signatures -------------------------------------------------------------------------------
def signature_fields(data: bytes) -> None:
    """What we read as a dictionary an independent reader does, too, and the fast reader reads the same."""
    try:
        members = parse_dictionary(data)
    except MalformedField:
        assert read_usual_quietly(data) is None, "the fast reader takes what the complete one refuses"
        return
    if data.strip(b" "):
        other: Any = http_sf.parse(data, tltype="dictionary")
        assert list(other) == [label.decode() for label in members]
        for label, member in members.items():
            _same_member(other[label.decode()], member)
    usual = read_usual_quietly(data)
    if usual is not None:
        ((label, member),) = members.items()
        read = read_member(label, member)
        assert usual._replace(coverage=read.coverage) == read
        assert usual.coverage.text == read.coverage.text


def read_usual_quietly(data: bytes) -> Any:
    try:
        return read_usual(data)
    except SignatureRefused:
        return None


def _same_member(other: Any, member: Any) -> None:
    value, parameters = other if isinstance(other, tuple) else (other, {})
    assert list(parameters) == [name.decode() for name in member.parameters]
    assert isinstance(value, list) == isinstance(member, InnerList)
    if isinstance(member, InnerList):
        assert len(value) == len(member.items)
        for theirs, ours in zip(value, member.items, strict=True):
            _same_member(theirs, ours)
    elif member.bare.value is not None:
        assert value == member.bare.value
    for name, bare in member.parameters.items():
        if bare.value is not None:
            assert parameters[name.decode()] == bare.value


def digest(data: bytes) -> None:
    """A digest that is accepted holds that of the body."""
    field, _, body = data.partition(b"\n")
    if digest_refusal(field, body) is None:
        assert content_digest(body) in field
    proof = content_digest(body)
    assert digest_refusal(proof, body) is None
    assert digest_refusal(proof, body + b"x") is not None


def signature(data: bytes) -> None:
    """Whatever is accepted says what one of the signed originals says: nobody can sign anything else."""
    message = read_message(data)
    if message is None:
        return
    key_id = accepted_as(message)
    if key_id is not None:
        meaning = meaning_of(message, key_id)
        assert meaning in [meaning_of(original, key_id) for original in ORIGINALS], meaning


def public_key(data: bytes) -> None:
    """A key that is read has 32 bytes."""
    try:
        assert len(read_public_key(data.decode("utf-8", "surrogateescape"))) == 32
    except BadPublicKey:
        return


# --- what partners and operators name ----------------------------------------------------------
_PUBLIC_ONLY: Final = AddressPolicy(allow_private=False)


def webhook_url(data: bytes) -> None:
    """Where we would call is where the standard library's reader would, and an address is a public one."""
    url = data.decode("utf-8", "replace")
    try:
        target = read_url(url, _PUBLIC_ONLY)
    except UrlRefused:
        return
    parts = urlsplit(url)
    assert (parts.scheme, target.secure) == ("https", True)
    assert (parts.username, parts.password, parts.fragment) == (None, None, "")
    assert parts.hostname is not None
    assert parts.port in {None, target.port}
    assert (parts.path or "/") + (f"?{parts.query}" if parts.query else "") == target.path.removesuffix(
        "" if parts.query or not target.path.endswith("?") else "?"
    )
    if target.literal:
        assert ip_address(parts.hostname) == ip_address(target.host)
        assert ip_address(target.host).is_global
    else:
        assert parts.hostname == target.host
        assert not _is_address_to_some(target.host)
    assert re.fullmatch(r"[\x21-\x7e]+", target.path + target.authority)
    again = read_url(f"https://{target.authority}{target.path}", _PUBLIC_ONLY)
    assert again == target, "written anew, it is the same place"


def _is_address_to_some(host: str) -> bool:
    """Whether the C library, and with it many a client, takes a name for an IPv4 address (`127.1`)."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


def program_file(data: bytes) -> None:
    """A refusal is one line that names the place; what is accepted keeps its limits."""
    try:
        program = parse_program_file(data.decode("utf-8", "replace"), "f.yaml")
    except ProgramFileError as refused:
        if not re.match(r"f\.yaml:\d+: [^\n]+\Z", str(refused)):
            raise AssertionError(f"not one line with its place: {refused}") from refused
        return
    for drop in program.drops:
        assert 1 <= drop.per_person_limit <= limits.PER_PERSON_LIMIT_MAX
        assert drop.opens_at < drop.closes_at
        assert drop.opens_at.tzinfo is not None


def voucher_name(data: bytes) -> None:
    """A name of a voucher that is read is the name that we would write."""
    text = data.decode("utf-8", "replace")
    numbers = parse_voucher_id(text)
    if numbers is not None:
        assert voucher_id(*numbers) == text


def query(data: bytes) -> None:
    """What the HTTP parser takes for the query is what was sent; a fragment is refused before."""
    data = data[:4_096]  # within what a head may have
    target = b"/v1/events?" + data
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return
    refusal = refusal_of_head(target, [(b"host", b"h")], "1.1", upgrades=False)
    assert (refusal is None) == (b"#" not in data)
    if refusal is None:
        assert (url.path, url.query or b"") == (b"/v1/events", data)


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        grab_body,
        express_head,
        signature_fields,
        digest,
        signature,
        public_key,
        webhook_url,
        program_file,
        voucher_name,
        query,
    )
}
