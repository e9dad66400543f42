"""Writing vouchers by the hundred gives the bytes that writing one gives."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from couponsvc.outbox.rendering import (
    SEPARATOR,
    compact,
    drop_data,
    render_event,
    render_vouchers,
    voucher_count,
    vouchers_data,
)
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.event import EventType
from couponsvc.values.voucher import MAX_NUMBER, Issued, Receipt

MOMENTS_MS = st.integers(min_value=0, max_value=4_000_000_000_000)
SLUGS = st.from_regex(r"[a-z0-9][a-z0-9-]{1,62}", fullmatch=True)
NUMBERS = st.integers(min_value=1, max_value=MAX_NUMBER)
VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
VOUCHERS = st.lists(
    st.tuples(
        NUMBERS,
        st.from_regex(r"[0-9A-Z]{1,20}", fullmatch=True),
        st.text(VISIBLE, min_size=1, max_size=128),
        st.from_regex(r"[A-Za-z0-9_|*@.:-]{1,64}", fullmatch=True),
    ),
    min_size=1,
    max_size=20,
)


@given(NUMBERS, SLUGS, st.tuples(NUMBERS, NUMBERS, NUMBERS), MOMENTS_MS, VOUCHERS)
@example(
    1,
    "aa",
    (1, 0, 1),
    0,
    [(1, "C", '"', "n"), (2, "C", "\\", "n"), (3, "C", "@@", "@@"), (4, "C", "%s{}", "n")],
)
@example(1, "aa", (1, 0, 1), 0, [(1, "-1", '_-1"', "@@-1")])
def test_many_vouchers_are_the_receipts_of_each_joined_by_commas(
    drop_no: int,
    drop_id: str,
    terms: tuple[int, int, int],
    issued_ms: int,
    vouchers: list[tuple[int, str, str, str]],
) -> None:
    receipt = Receipt(drop_no, drop_id, VoucherTerms(*terms))
    joined = SEPARATOR.join(f"{value}" for voucher in vouchers for value in voucher)
    one_by_one = b",".join(
        receipt.render(Issued(person, number, seq, issued_ms, code)) for seq, code, person, number in vouchers
    )
    assert render_vouchers(receipt, issued_ms, joined).encode() == one_by_one
    assert voucher_count(joined) == len(vouchers)


def test_where_no_voucher_stands_none_is_counted() -> None:
    assert voucher_count(None) == 0


@given(
    st.dictionaries(
        st.from_regex("[a-z_]{1,10}", fullmatch=True), st.integers() | st.text() | st.booleans(), max_size=4
    ),
    SLUGS,
    MOMENTS_MS,
)
def test_an_event_of_a_drop_is_json_with_its_data_after_the_name(
    data: dict[str, int | str], drop_id: str, occurred_ms: int
) -> None:
    data.pop("drop_id", None)
    body = render_event(
        event_no=7,
        kind=EventType.DROP_PAUSED,
        source=f"/v1/drops/{drop_id}",
        partner_id="bank-a",
        occurred_ms=occurred_ms,
        sequence=3,
        data=drop_data(drop_id, compact(data)),
    )
    document = json.loads(body)
    assert document["data"] == {"drop_id": drop_id, **data}
    assert (document["id"], document["sequence"]) == ("evt_7", "0000000003")
    assert b"\n" not in body


def test_vouchers_of_several_moments_are_one_list() -> None:
    assert json.loads(vouchers_data("drop-a", ['{"seq":1},{"seq":2}', '{"seq":3}'])) == {
        "drop_id": "drop-a",
        "vouchers": [{"seq": 1}, {"seq": 2}, {"seq": 3}],
    }
