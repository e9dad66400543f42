"""The complete reader of Signature-Input: RFC 8941, compared with an independent implementation."""

import re

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponsvc.support.signing.fields import (
    InnerList,
    Item,
    MalformedField,
    decode_base64,
    parse_dictionary,
    serialize_items,
    serialize_parameters,
)
from couponsvc.support.signing.inputs import read_usual


def canonical(text: bytes) -> bytes:
    """Read and write again."""
    return b", ".join(
        key
        + (
            b"=" + serialize_items(member.items) + serialize_parameters(member.parameters)
            if isinstance(member, InnerList)
            else (b"" if member.bare.canonical == b"?1" else b"=" + member.bare.canonical)
            + serialize_parameters(member.parameters)
        )
        for key, member in parse_dictionary(text).items()
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", b""),
        (b"a=1", b"a=1"),
        (b"a", b"a"),
        (b"a;x;y=?0", b"a;x;y=?0"),
        (b"  a=1 ,\t b=2  ", b"a=1, b=2"),
        (b"a=007;b=-0", b"a=7;b=0"),
        (b"a=1.50, b=-0.125", b"a=1.5, b=-0.125"),
        (b'a="x\\"y\\\\z"', b'a="x\\"y\\\\z"'),
        (b"a=tok/en:*, *=*", b"a=tok/en:*, *=*"),
        (b"a=:AQI=:", b"a=:AQI=:"),
        (b"a=(), b=( )", b"a=(), b=()"),
        (b'sig=(  "@method"  "x"; sf;  y=1);  created=5', b'sig=("@method" "x";sf;y=1);created=5'),
    ],
)
def test_legal_fields_are_read_and_written_canonically(text: bytes, expected: bytes) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b",",
        b"a=1,",
        b"a=1 b=2",
        b"A=1",
        b"a=",
        b"a=;b",
        b'a="x',
        b'a="\\x"',
        b'a="\x01"',
        "a=é".encode(),
        b"a=1234567890123456",
        b"a=1234567890123.0",
        b"a=1.",
        b"a=1.2345",
        b"a=-",
        b"a=?2",
        b"a=:AQI:",
        b"a=:AQJ=:",
        b"a=:A Q=:",
        b"a=(1 2",
        b'a=("x""y")',
        b"a=((1))",
        b"a=1, a=2",
        b"a=1;b;b",
        b"a=@1",
        b"a=1 ;b",
        b"\ta=1",
    ],
)
def test_what_is_not_legal_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedField):
        parse_dictionary(text)


PIECES = st.sampled_from(
    [
        "a",
        "b",
        "=",
        "(",
        ")",
        ";",
        '"',
        ", ",
        " ",
        "1",
        "-",
        ".",
        "5",
        "?0",
        "?1",
        ":AQI=:",
        "*",
        '"x"',
        "t/o",
        "\\",
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_it_reads_nothing_that_the_independent_reader_refuses(text: str) -> None:
    data = text.encode()
    try:
        ours = canonical(data)
    except MalformedField:
        return  # stricter: duplicates, padding
    theirs = http_sf.parse(data, tltype="dictionary")
    assert ours == (http_sf.ser(theirs).encode() if theirs else b"")


VISIBLE = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    label=st.from_regex(re.compile(r"[a-z*][a-z0-9_.*-]{0,8}"), fullmatch=True),
    key_id=VISIBLE.filter(bool),
    nonce=VISIBLE,
    created=st.integers(0, 10**15 - 1),
    order=st.permutations(["created", "keyid", "nonce"]),
)
def test_the_fast_and_the_complete_reader_agree(
    label: str, key_id: str, nonce: str, created: int, order: list[str]
) -> None:
    values = {"created": str(created), "keyid": quoted(key_id), "nonce": quoted(nonce)}
    value = '("@method" "@path")' + "".join(f";{name}={values[name]}" for name in order)
    member = parse_dictionary(f"{label}={value}".encode())[label.encode()]
    assert isinstance(member, InnerList)
    assert member.parameters[b"keyid"].value == key_id
    assert member.parameters[b"created"].value == created
    assert serialize_items(member.items) + serialize_parameters(member.parameters) == value.encode()
    usual = read_usual(f"{label}={value}".encode())
    if usual is not None:
        assert (usual.label, usual.created, usual.key_id) == (label.encode(), created, key_id)
        assert usual.template.endswith(value.replace("%", "%%").encode())
    else:
        assert any(character in key_id + nonce for character in ';"\\')


def test_a_parameter_twice_is_never_read_fast() -> None:
    assert read_usual(b'sig=("@method" "@path");created=1;keyid="a"') is not None
    assert read_usual(b'sig=("@method" "@path");created=1;keyid="a";created=2') is None


def test_items_keep_their_type() -> None:
    members = parse_dictionary(b'a="1", b=1, c=one, d=:AQI=:, e=1.0, f=?1')
    values = {key: member.bare.value for key, member in members.items() if isinstance(member, Item)}
    assert values == {b"a": "1", b"b": 1, b"c": None, b"d": b"\x01\x02", b"e": None, b"f": None}


@pytest.mark.parametrize("text", [b"AQI", b"AQJ=", b"AQI= ", b"A_I=", b"=", b"AQI==", b"\n"])
def test_one_value_has_one_spelling_in_base64(text: bytes) -> None:
    assert decode_base64(b"AQI=") == b"\x01\x02"
    assert decode_base64(text) is None
