"""What is sealed opens only for its purpose and owner, and shows nothing."""

import base64
import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponsvc.support.sealing import BadMasterKey, CannotOpen, MasterKey

KEY = bytes(range(32))
MASTER = MasterKey(KEY)


@given(plain=st.binary(max_size=100), purpose=st.text(max_size=8), owner=st.text(max_size=8))
def test_what_was_sealed_opens(plain: bytes, purpose: str, owner: str) -> None:
    assert MASTER.open(MASTER.seal(plain, purpose, owner), purpose, owner) == plain


def test_sealing_twice_gives_different_bytes_of_a_known_form() -> None:
    first, second = MASTER.seal(b"x" * 32, "p"), MASTER.seal(b"x" * 32, "p")
    assert first != second
    assert first[0] == second[0] == 1
    assert len(first) == 1 + 12 + 32 + 16


@pytest.mark.parametrize("bit", range(8))
def test_every_altered_bit_is_noticed(bit: int) -> None:
    sealed = MASTER.seal(b"secret", "p")
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1 << bit
        with pytest.raises(CannotOpen):
            MASTER.open(bytes(altered), "p")
    for length in range(len(sealed)):
        with pytest.raises(CannotOpen):
            MASTER.open(sealed[:length], "p")


def test_another_purpose_owner_or_master_key_opens_nothing() -> None:
    sealed = MASTER.seal(b"secret", "p", "a")
    assert MASTER.open(sealed, "p", "a") == b"secret"
    for master, purpose, owner in (
        (MASTER, "q", "a"),
        (MASTER, "p", "b"),
        (MASTER, "p", ""),
        (MasterKey(bytes(32)), "p", "a"),
    ):
        with pytest.raises(CannotOpen, match="cannot be opened") as refused:
            master.open(sealed, purpose, owner)
        assert "secret" not in str(refused.value)


def test_a_sealed_value_of_today_opens_for_ever() -> None:
    sealed = base64.b64decode("AavTo09BviJWImaJlNxyu6yyP7fHP+C6Br2cV3an/6PgEMX/FkXnKIhyEQ==")
    assert MasterKey(KEY).open(sealed, "credential-secret", "bank-a-1") == b"kept for years"


def test_token_hashes_are_keyed_and_stable() -> None:
    assert MASTER.token_hash("t").hex() == "65b221cdf8d3c9c8895a0dea43d373e98943eecbe7f739aa72a4c30edda9ceba"
    assert MASTER.token_hash("t") != MASTER.token_hash("u")
    assert MASTER.token_hash("t") != MasterKey(bytes(32)).token_hash("t")


@pytest.mark.parametrize(
    "text",
    ["", "x", base64.b64encode(bytes(31)).decode(), base64.b64encode(bytes(33)).decode(), "é" * 44, "-" * 44],
)
def test_only_32_bytes_in_base64_are_a_master_key(text: str) -> None:
    with pytest.raises(BadMasterKey) as refused:
        MasterKey.from_base64(text)
    assert "32" in str(refused.value)
    assert not text or text == "x" or text not in str(refused.value)


def test_a_master_key_survives_the_way_through_settings() -> None:
    text = base64.b64encode(KEY).decode()
    assert MasterKey.from_base64(f" {text}\n").to_base64() == text
    generated = MasterKey.generate()
    assert MasterKey.from_base64(generated.to_base64()).open(generated.seal(b"a", "p"), "p") == b"a"


def test_a_master_key_shows_and_pickles_nothing() -> None:
    assert repr(MASTER) == str(MASTER) == f"{MASTER}" == "MasterKey(…)"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            leak(MASTER)
