"""The bytes that stages hand each other: what Lua writes Python reads, and the other way round."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from couponsvc.ledger.acknowledge import acknowledgement
from couponsvc.ledger.grouping import Settled, SettledPart, check_entry
from couponsvc.values import wire
from couponsvc.values.grab import Grab
from couponsvc.values.note import read_note, write_note
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import Confirmation, DropEpoch, MalformedEntry
from tests.ledgers import entry, grant

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
NUMBER = st.text("AZaz09_|*@.:-", min_size=1, max_size=64)
GRANT = st.builds(
    wire.Grant,
    st.just(1),
    VISIBLE.map(lambda token: f"12:{token}"),
    NUMBER,
    st.integers(1, 16),
    st.integers(0, 511),
    VISIBLE | st.just("") | st.just("支付宝"),
    st.just("") | st.just("370200"),
)
ENTRY = {b"v": b"1", b"o": wire.encode_origin("a", 7), b"t": b"1790000000123", b"d": b"", b"g": b""}


def fields(grants: list[Any], drops: list[tuple[int, int]], **changed: bytes) -> dict[bytes, bytes]:
    packed = {b"d": wire.encode_drops(drops), b"g": msgspec.msgpack.encode(grants)}
    return ENTRY | packed | {name.encode(): value for name, value in changed.items()}


@given(st.lists(GRANT, min_size=1, max_size=5))
def test_an_entry_reads_as_it_was_written(grants: list[wire.Grant]) -> None:
    read = wire.decode_entry(b"1-2", fields(grants, [(7, 3)]))
    assert read == wire.Entry("1-2", wire.Origin("a", 7), 1790000000123, [DropEpoch(7, 3)], grants)
    check_entry(read)


LUA_GRANTS = """
local grabs = cmsgpack.unpack(ARGV[1])
local granted = {}
for i, g in ipairs(grabs) do granted[i] = {g[1], g[2], g[3], 1, i - 1, g[4], g[5]} end
return {cmsgpack.pack(granted), cmsgpack.pack(cmsgpack.unpack(ARGV[2]))}
"""


@pytest.mark.parametrize("count", [1, 15, 16, 512])
async def test_lua_and_python_read_each_other_s_grants(redis: Redis, count: int) -> None:
    """Sizes on both sides of MessagePack's short array; short and long texts."""
    grabs = [
        Grab(70_000, f"1:{'x' * (i % 130)}p", f"n{i}", "渠道" if i % 2 else "", "370200")
        for i in range(count)
    ]
    packed_grabs, packed_drops = (
        wire.encode_grabs([wire.grab_row(1, g) for g in grabs]),
        wire.encode_drops([(70_000, 2)]),
    )
    reply: Any = await redis.eval(LUA_GRANTS, 0, packed_grabs, packed_drops)
    read = wire.decode_entry(b"1-1", ENTRY | {b"g": reply[0], b"d": reply[1]})
    assert read.drops == [DropEpoch(70_000, 2)]
    assert [(g.holder, g.out_request_no, g.place, g.channel) for g in read.grants] == [
        (g.holder, g.out_request_no, i, g.channel) for i, g in enumerate(grabs)
    ]
    check_entry(read)


async def test_lua_reads_the_acknowledgement_that_python_writes(redis: Redis) -> None:
    e = entry("1-1", [(7, 3)], [grant("p1", "n1"), grant("p2", "n2", place=1)])
    told = [
        Confirmation(0, Verdict.COMMITTED, 1, 1_790_000_000_123, "CODE", "n1"),
        Confirmation(1, Verdict.MISMATCH, 0, 0, "", "n2"),
    ]
    part = SettledPart(DropEpoch(7, 3), e.grants, told, frozenset())
    _, arguments = acknowledgement(0, [Settled(e, [part])])
    reply: Any = await redis.eval(
        "return cjson.encode({cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])})", 0, *arguments
    )
    assert msgspec.json.decode(reply) == [
        [[7, 3, ["1:1:p1", "n1 1 1790000000123 CODE"], ["1:1:p2", "n2"]]],
        [["1-1", 2, [[1, 1, 1, 2, 2]]]],
    ]


MALFORMED = [
    ("a version that is newer", {"v": b"2"}),
    ("an origin that is no pair", {"o": b"\x01"}),
    ("a time that is no number", {"t": b"soon"}),
    ("drops that are cut off", {"d": b"\x92"}),
    ("grants that are text", {"g": msgspec.msgpack.encode("x")}),
    ("a grant with a field missing", {"g": msgspec.msgpack.encode([[1, "1:p", "n", 1, 0, "app"]])}),
    ("a grant whose ordinal is text", {"g": msgspec.msgpack.encode([[1, "1:p", "n", "1", 0, "app", ""]])}),
]


@pytest.mark.parametrize("changed", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_what_cannot_be_read_is_refused_whole(changed: dict[str, bytes]) -> None:
    with pytest.raises(MalformedEntry):
        wire.decode_entry(b"1-1", fields([grant()], [(7, 3)], **changed))


def test_a_missing_field_is_refused() -> None:
    for name in (b"v", b"o", b"t", b"d", b"g"):
        whole = fields([grant()], [(7, 3)])
        del whole[name]
        with pytest.raises(MalformedEntry):
            wire.decode_entry(b"1-1", whole)


UNMEANT = [
    ("no grants", []),
    ("drop index 0", [grant(drop_index=0)]),
    ("drop index beyond the drops", [grant(), grant(drop_index=2)]),
    ("ordinal 0", [grant(ordinal=0)]),
    ("ordinal beyond any limit", [grant(ordinal=17)]),
    ("a holder without partner", [grant()._replace(holder="p1")]),
    ("a holder without person", [grant()._replace(holder="1:")]),
    ("a partner that is no number", [grant()._replace(holder="x:p1")]),
    ("a partner in digits of another script", [grant()._replace(holder="\u0661:p1")]),
    ("the separator of columns in a text", [grant()._replace(channel="a\x1fb")]),
    ("what Postgres cannot keep", [grant()._replace(channel="a\x00b")]),
]


@pytest.mark.parametrize("grants", [row[1] for row in UNMEANT], ids=[row[0] for row in UNMEANT])
def test_what_can_be_read_but_not_meant_is_refused(grants: list[wire.Grant]) -> None:
    with pytest.raises(MalformedEntry):
        check_entry(entry("1-1", [(7, 3)], grants))


@given(st.lists(st.builds(Confirmation, st.integers(0, 511), st.sampled_from(Verdict).map(int),
       st.integers(0, 2**31 - 1), st.integers(0, 2**53), NUMBER, NUMBER)))  # fmt: skip
def test_confirmations_read_as_they_were_written(told: list[Confirmation]) -> None:
    assert wire.decode_confirmations(wire.encode_confirmations(9, told)) == (1, 9, told)


@given(NUMBER, st.integers(1, 2**31 - 1), st.integers(0, 2**53))
def test_notes_read_as_they_were_written(number: str, seq: int, issued_ms: int) -> None:
    assert read_note(write_note(number, seq, issued_ms, "CODE")) == (number, seq, issued_ms, "CODE")
    assert read_note(number) == (number, 0, 0, "")
