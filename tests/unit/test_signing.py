"""What a signature must and need not be, on the request that matters: a grab."""

import hmac
from dataclasses import replace

import pytest

from couponsvc import limits
from couponsvc.support.signing import (
    Ed25519Key,
    Ed25519SigningKey,
    HmacKey,
    SignatureRefused,
    SigningKey,
    UnknownSigner,
    WeakKey,
    combine,
    digest_refusal,
    inputs,
    sign,
)
from tests.unit.grab_request import HMAC, KEYS, NOW_S, OTHER_HMAC, PRIVATE, PUBLIC, SECRET, GrabRequest

COVERED = '("@method" "@path" "content-digest")'


@pytest.mark.parametrize("key", [HMAC, PRIVATE], ids=lambda key: key.algorithm)
def test_what_we_sign_verifies(key: SigningKey) -> None:
    assert GrabRequest().signed(key).verify() == key.key_id
    assert GrabRequest(method=b"GET", query=b"a=1&b=%20", body=b"").signed(key).verify() == key.key_id


def test_a_signature_may_be_replayed_within_the_window() -> None:
    request = GrabRequest().signed()
    assert [request.verify(NOW_S + age) for age in (0, 0, 299, -299)] == ["bank-a-1"] * 4


@pytest.mark.parametrize("age_s", [301, -301, 300.5, 86_400, -86_400])
def test_created_outside_the_window_is_refused(age_s: float) -> None:
    request = GrabRequest().signed()
    assert request.verify(NOW_S) == "bank-a-1"  # it is remembered now; the window counts all the same
    with pytest.raises(SignatureRefused, match=r"the window is 300 s: check the clock"):
        request.verify(NOW_S + age_s)


def test_the_reason_names_the_age() -> None:
    with pytest.raises(SignatureRefused) as refused:
        GrabRequest().signed(created_s=NOW_S - 412).verify()
    assert refused.value.reason == "created is 412 s old; the window is 300 s: check the clock"
    assert limits.SIGNATURE_WINDOW_S == 300


def test_expires_counts_also_for_a_remembered_input() -> None:
    request = GrabRequest()
    digest = sign(HMAC, b"POST", b"/", b"", request.body, created_s=NOW_S)[0]
    request = replace(request, headers=[*request.headers, digest]).signed_as(
        f'{COVERED};created={NOW_S};expires={NOW_S + 10};keyid="bank-a-1"'
    )
    assert request.verify(NOW_S + 10) == "bank-a-1"
    with pytest.raises(SignatureRefused, match="expired 1 s ago"):
        request.verify(NOW_S + 11)


def test_the_algorithm_is_the_key_s_and_never_the_request_s() -> None:
    body_digest = sign(HMAC, b"POST", b"/", b"", GrabRequest().body, created_s=NOW_S)[0]
    bare = replace(GrabRequest(), headers=[*GrabRequest().headers, body_digest])
    confused = HmacKey("bank-a-2", PRIVATE.public_key)  # the public key, misused as a shared secret
    for algorithm in ("", ';alg="hmac-sha256"', ';alg="ed25519"'):
        request = bare.signed_as(f'{COVERED};created={NOW_S};keyid="bank-a-2"{algorithm}', key=confused)
        with pytest.raises(SignatureRefused, match="does not verify"):
            request.verify()
    named = bare.signed_as(f'{COVERED};created={NOW_S};keyid="bank-a-1";alg="ed25519"')
    with pytest.raises(SignatureRefused, match="does not verify"):
        named.verify()
    assert bare.signed_as(f'{COVERED};created={NOW_S};keyid="bank-a-1";alg="hmac-sha256"').verify()


def test_an_unknown_key_and_a_wrong_secret_are_told_the_same() -> None:
    stranger = GrabRequest().signed(HmacKey("bank-a-1", bytes(32)))
    with pytest.raises(SignatureRefused) as wrong:
        stranger.verify()
    with pytest.raises(UnknownSigner) as unknown:
        stranger.verify(keys={})
    assert wrong.value.reason == unknown.value.reason
    assert unknown.value.key_id == "bank-a-1"


def test_one_partner_cannot_speak_for_another() -> None:
    request = GrabRequest().signed(OTHER_HMAC)
    assert request.verify() == "bank-b-1"
    forged = request.with_header(
        b"signature-input", request.header(b"signature-input").replace(b"bank-b-1", b"bank-a-1")
    )
    with pytest.raises(SignatureRefused, match="does not verify"):
        forged.verify()


@pytest.mark.parametrize("missing", [b"signature", b"signature-input", b"content-digest"])
def test_a_missing_header_is_refused(missing: bytes) -> None:
    request = GrabRequest().signed()
    request = replace(request, headers=[line for line in request.headers if line[0] != missing])
    with pytest.raises(SignatureRefused, match=missing.decode()):
        request.verify()


def test_a_body_needs_a_digest_that_is_covered() -> None:
    unproven = replace(GrabRequest(body=b"").signed(), body=b"{}")
    with pytest.raises(SignatureRefused, match='"content-digest" is not covered'):
        unproven.verify()


def test_a_line_break_in_a_covered_value_cannot_forge_the_base() -> None:
    # The value of x-a contains what looks like the next line of the base.
    honest = replace(GrabRequest(body=b""), headers=[(b"x-a", b"1"), (b"x-b", b"2")]).signed_as(
        f'("@method" "@path" "x-a" "x-b");created={NOW_S};keyid="bank-a-1"'
    )
    assert honest.verify()
    value = f'("@method" "@path" "x-a");created={NOW_S};keyid="bank-a-1"'
    forged = replace(GrabRequest(body=b""), headers=[(b"x-a", b'1\n"x-b": 2')]).signed_as(value)
    with pytest.raises(SignatureRefused, match="line break"):
        forged.verify()


def test_bytes_outside_ascii_are_refused_in_covered_values_only() -> None:
    free = GrabRequest().with_header(b"x-name", "青岛".encode()).signed()
    assert free.verify()
    covered = replace(GrabRequest(body=b""), headers=[(b"x-name", "青岛".encode())]).signed_as(
        f'("@method" "@path" "x-name");created={NOW_S};keyid="bank-a-1"'
    )
    with pytest.raises(SignatureRefused, match="outside ASCII"):
        covered.verify()


def test_percent_signs_in_names_and_parameters_are_only_text() -> None:
    request = replace(GrabRequest(body=b""), headers=[(b"x%b%s", b"%d")]).signed_as(
        f'("@method" "@path" "x%b%s");created={NOW_S};keyid="bank-a-1";nonce="%b%%"'
    )
    assert request.verify() == "bank-a-1"


def test_what_did_not_verify_is_not_remembered() -> None:
    stranger = GrabRequest().signed(HmacKey("nobody", bytes(32)))
    given = stranger.header(b"signature-input")
    with pytest.raises(UnknownSigner):
        stranger.verify()
    assert inputs.recall(given) is None
    request = GrabRequest().signed()
    request.verify()
    assert inputs.recall(request.header(b"signature-input")) is not None


def test_memory_is_bounded() -> None:
    for age_s in range(-290, 290):
        GrabRequest().signed(created_s=NOW_S + age_s).verify()
    remembered = sum(
        inputs.recall(GrabRequest().signed(created_s=NOW_S + age_s).header(b"signature-input")) is not None
        for age_s in range(-290, 290)
    )
    assert 0 < remembered <= inputs.REMEMBERED_MAX_COUNT


def test_duplicate_headers_are_joined_in_order() -> None:
    assert combine([(b"a", b" 1 "), (b"b", b"2"), (b"a", b"3")]) == {b"a": b"1, 3", b"b": b"2"}


def test_a_digest_may_stand_beside_others_but_must_be_right() -> None:
    good = sign(HMAC, b"POST", b"/", b"", b"x", created_s=0)[0][1]
    assert digest_refusal(good, b"x") is None
    assert digest_refusal(b"sha-512=:AAAA:,\t" + good, b"x") is None
    assert digest_refusal(good, b"y") is not None
    for field in (
        b"",
        b"sha-256",
        b"sha-256=x",
        good + b",",
        good + b";a=1",
        b"," + good,
        good[:-1],
        b"a" * 2_000,
    ):
        assert digest_refusal(field, b"x") is not None, field


@pytest.mark.parametrize("secret", [b"", b"short", bytes(31)])
def test_short_secrets_are_refused(secret: bytes) -> None:
    with pytest.raises(WeakKey, match="32 bytes or more"):
        HmacKey("k", secret)


@pytest.mark.parametrize("make", [Ed25519Key, Ed25519SigningKey])
def test_ed25519_keys_have_32_bytes(make: type[Ed25519Key] | type[Ed25519SigningKey]) -> None:
    with pytest.raises(WeakKey, match="32 bytes"):
        make("k", bytes(31))


def test_no_key_shows_its_secret() -> None:
    for key in (HMAC, PRIVATE, PUBLIC):
        assert repr(key) == f"{type(key).__name__}({key.key_id!r})"
    refusals = []
    for request in (GrabRequest().signed(OTHER_HMAC), GrabRequest().signed()):
        with pytest.raises(SignatureRefused) as refused:
            replace(request, body=b"{}").verify()
        refusals.append(refused.value.reason)
    for shown in (SECRET.hex(), repr(SECRET), "p-8f3a5c0d", "20261001-000017"):
        assert not any(shown in reason for reason in refusals)


def test_the_signature_is_plain_hmac_of_the_documented_base() -> None:
    headers = dict(sign(HMAC, b"GET", b"/p", b"q=1", created_s=7, nonce="n"))
    value = b'("@method" "@path" "@query");created=7;keyid="bank-a-1";nonce="n"'
    base = b'"@method": GET\n"@path": /p\n"@query": ?q=1\n"@signature-params": ' + value
    assert headers[b"signature-input"] == b"sig=" + value
    assert HMAC.verifies(base, hmac.digest(SECRET, base, "sha256"))
    assert set(KEYS) == {"bank-a-1", "bank-b-1", "bank-a-2"}


def bare(*headers: tuple[bytes, bytes]) -> GrabRequest:
    return replace(GrabRequest(body=b""), headers=list(headers))


def test_space_around_a_covered_value_is_not_part_of_it() -> None:
    request = bare((b"x-a", b"1")).signed_as(f'("@method" "@path" "x-a");created={NOW_S};keyid="bank-a-1"')
    assert request.with_header(b"x-a", b" \t1 \t").verify() == "bank-a-1"


def test_an_empty_path_is_signed_as_a_slash() -> None:
    assert replace(bare(), raw_path=b"/").signed().verify() == "bank-a-1"
    assert replace(replace(bare(), raw_path=b"/").signed(), raw_path=b"").verify() == "bank-a-1"


def test_of_several_signatures_an_unknown_key_is_named_so_that_it_can_be_looked_for() -> None:
    one = f'a=("@method" "@path");created={NOW_S};keyid="new-key"'
    two = f'b=("@method" "@path");created={NOW_S};keyid="bank-a-1"'
    request = replace(
        bare((b"signature-input", f"{one}, {two}".encode()), (b"signature", b"a=:AQI=:, b=:AQI=:"))
    )
    with pytest.raises(UnknownSigner) as unknown:
        request.verify()
    assert unknown.value.key_id == "new-key"


def test_sizes_are_bounded() -> None:
    created = f'created={NOW_S};keyid="bank-a-1"'
    headers = [(b"x-%d" % number, b"v") for number in range(31)]
    names = " ".join(f'"x-{number}"' for number in range(31))
    assert bare(*headers).signed_as(f'("@method" {names.replace("x-30", "@path")});{created}').verify()
    with pytest.raises(SignatureRefused, match="more than 32 components"):
        bare(*headers).signed_as(f'("@method" "@path" {names});{created}').verify()
    with pytest.raises(SignatureRefused, match="keyid may have 1 to 128"):
        bare().signed_as(f'("@method" "@path");created={NOW_S};keyid="{"k" * 129}"').verify()
    with pytest.raises(SignatureRefused, match="4096 bytes"):
        bare().signed_as(f'("@method" "@path");{created};nonce="{"n" * 4_096}"').verify()
    member = b"sha-512=:AAAA:, "
    good = sign(HMAC, b"POST", b"/", b"", b"x", created_s=0)[0][1]
    assert digest_refusal(member * 50 + good, b"x") is None
    assert digest_refusal(member * 70 + good, b"x") is not None


def test_components_are_strings() -> None:
    with pytest.raises(SignatureRefused, match="a component is not a string"):
        bare(
            (b"signature-input", b'sig=("@method" "@path" 1);created=%d;keyid="bank-a-1"' % NOW_S),
            (b"signature", b"sig=:AQI=:"),
        ).verify()
