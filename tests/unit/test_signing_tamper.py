"""Nothing that a signature covers can be altered, and nothing that is sent can break the verifier."""

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from couponsvc.support.signing import SignatureRefused, SigningKey, verify
from tests.unit.grab_request import HMAC, KEYS, NOW_S, PRIVATE, GrabRequest

COVERED_PARTS = ("method", "raw_path", "query", "body")
COVERED_HEADERS = (b"content-digest", b"signature-input", b"signature")


def altered(value: bytes, bit: int) -> Iterator[bytes]:
    """Every value that differs from `value` in this bit of one byte."""
    for position, byte in enumerate(value):
        yield value[:position] + bytes([byte ^ (1 << bit)]) + value[position + 1 :]


def with_part(request: GrabRequest, part: str, value: bytes) -> GrabRequest:
    changes: dict[str, Any] = {part: value}
    return replace(request, **changes)


def variants(request: GrabRequest, bit: int) -> Iterator[GrabRequest]:
    for part in COVERED_PARTS:
        for value in altered(getattr(request, part), bit):
            yield with_part(request, part, value)
    for name in COVERED_HEADERS:
        for value in altered(request.header(name), bit):
            yield request.with_header(name, value)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("key", [HMAC, PRIVATE], ids=lambda key: key.algorithm)
def test_every_altered_bit_is_refused(key: SigningKey, bit: int) -> None:
    request = GrabRequest(query=b"a=1").signed(key)
    assert request.verify() == key.key_id
    count = 0
    for variant in variants(request, bit):
        with pytest.raises(SignatureRefused):
            variant.verify()
        count += 1
    parts = [request.method, request.raw_path, request.query, request.body]
    assert count == sum(map(len, [*parts, *map(request.header, COVERED_HEADERS)]))


@pytest.mark.parametrize("part", COVERED_PARTS)
def test_what_is_cut_or_added_is_refused(part: str) -> None:
    request = GrabRequest(query=b"a=1").signed()
    value = getattr(request, part)
    for changed in (value[:-1], value + b"x", value + b" ", b" " + value, value + b"\n", b"", value * 2):
        with pytest.raises(SignatureRefused):
            with_part(request, part, changed).verify()


def test_a_query_cannot_be_moved_into_the_path_or_back() -> None:
    request = GrabRequest(query=b"a=1").signed()
    with pytest.raises(SignatureRefused):
        replace(request, raw_path=request.raw_path + b"?a=1", query=b"").verify()
    with pytest.raises(SignatureRefused):
        replace(GrabRequest().signed(), query=b"a=1").verify()


def test_a_second_header_line_is_refused() -> None:
    request = GrabRequest().signed()
    for name in COVERED_HEADERS:
        doubled = replace(request, headers=[*request.headers, (name, request.header(name))])
        if name == b"content-digest":
            with pytest.raises(SignatureRefused):
                doubled.verify()
        else:
            with pytest.raises(SignatureRefused, match=r"stands twice|cannot be read"):
                doubled.verify()


HEADER_NAMES = st.sampled_from(
    [b"signature-input", b"signature", b"content-digest", b"host", b"@method", b"@path", b"x-a"]
)
PIECES = st.sampled_from(
    [
        b'sig=("@method" "@path" "content-digest")',
        b'sig=("@method" "@path")',
        b"sig=",
        b"(",
        b")",
        b'"@authority"',
        b'"@query"',
        b";created=1790820000",
        b';keyid="bank-a-1"',
        b';keyid="bank-a-2"',
        b';alg="ed25519"',
        b";expires=",
        b'"',
        b"\\",
        b":",
        b"=:AAAA:",
        b", ",
        b" ",
        b";",
        b"?1",
        b"-1.5",
        b"%s",
        b"\n",
        b"\xff",
        b"9" * 16,
    ]
)
VALUES = st.binary(max_size=80) | st.lists(PIECES, max_size=12).map(b"".join)


@given(
    method=st.text(max_size=8) | st.binary(max_size=8),
    raw_path=st.binary(max_size=30),
    query=st.binary(max_size=20),
    headers=st.lists(st.tuples(HEADER_NAMES, VALUES), max_size=8),
    body=st.binary(max_size=20),
    scheme=st.binary(max_size=6),
)
@example(
    "\ud800", b"", b"", [(b"signature-input", b'sig=("@method" "@path")'), (b"signature", b"")], b"", b""
)
def test_nothing_but_a_refusal_comes_of_bytes(  # noqa: PLR0917
    method: str | bytes,
    raw_path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    scheme: bytes,
) -> None:
    with pytest.raises(SignatureRefused) as refused:
        verify(method, raw_path, query, headers, body, KEYS.get, NOW_S, scheme)
    assert refused.value.reason


@given(name=st.sampled_from(COVERED_HEADERS), data=st.data())
def test_a_mangled_header_is_refused(name: bytes, data: st.DataObject) -> None:
    request = GrabRequest().signed()
    value = request.header(name)
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, len(value)))
    mangled = value[:start] + data.draw(VALUES) + value[end:]
    try:
        key_id = request.with_header(name, mangled).verify()
    except SignatureRefused:
        return
    # What may pass is the same content in another spelling, or something unsigned beside it.
    assert key_id == "bank-a-1"
    if name == b"content-digest":
        assert mangled.strip(b" \t") == value


@pytest.mark.parametrize(
    "value",
    [
        b"sig=(" + b'"a" ' * 1_000,
        b"sig=(" + b'"@method" ' * 400 + b")",
        b'sig=("@method")' + b';nonce="' * 500,
        b"sig=(" * 800,
        b", ".join(b"s%d=1" % number for number in range(500)),
        b'sig=("' + b"\\\\" * 2_000,
        b" " * 4_096,
        b"a" * 4_096,
        b'sig=("a")' + b";a" * 2_000,
        b"sig=:" + b"A" * 4_000,
    ],
    ids=lambda value: value[:12].decode(),
)
def test_hostile_headers_cost_little(value: bytes) -> None:
    request = GrabRequest().signed().with_header(b"signature-input", value)
    began = perf_counter()
    for _ in range(10):
        with pytest.raises(SignatureRefused):
            request.verify()
    assert perf_counter() - began < 1.0, "a quadratic or worse reader would need seconds"
