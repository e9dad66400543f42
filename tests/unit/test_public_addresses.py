"""Which addresses are refused: the corpus of forms that got past others' filters."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponsvc.support.public_addresses import AddressPolicy

PUBLIC = AddressPolicy(allow_private=False)
PRIVATE = AddressPolicy(allow_private=True)

ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "168.63.129.15",
    "114.114.114.114",
    "2606:4700:4700::1111",
    "2400:3200::1",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2a00:1450:4001:81b::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]
PRIVATE_ONLY = [
    "127.0.0.1",
    "127.1.2.3",
    "127.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "::1",
    "fc00::1",
    "fd12:3456:789a::1",
    "fec0::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::FFFF:10.1.2.3",
    "64:ff9b::7f00:1",
    "64:ff9b::192.168.1.1",
]
NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "fe80::1",
    "febf::1",
    "fe80::1%eth0",
    "::1%lo",
    "2606:4700::1%2",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::100.100.100.200",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1::8.8.8.8",
    "::169.254.169.254",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:169.254.169.254",
    "::ffff:0:8.8.8.8",
    "2002:a9fe:a9fe::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "2001::1",
    "2001:0:a9fe:a9fe::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "100::1",
    "200::1",
    "2606:4700::5efe:169.254.169.254",
    "2606:4700::200:5efe:169.254.169.254",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "0.1.2.3",
    "::",
    "192.0.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "ff0e::1",
    "::ffff:0.0.0.0",
    "::ffff:224.0.0.1",
    # what is no address in its one canonical form is never guessed at
    "",
    "localhost",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "127.0.0.1.",
    "[::1]",
    " 8.8.8.8",
]


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_is_allowed_in_either_mode(address: str) -> None:
    assert PUBLIC.refuse_reason(address) is None
    assert PRIVATE.refuse_reason(address) is None


@pytest.mark.parametrize("address", PRIVATE_ONLY)
def test_a_private_address_is_allowed_in_development_only(address: str) -> None:
    assert PUBLIC.refuse_reason(address) is not None
    assert PRIVATE.refuse_reason(address) is None


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_what_is_no_unicast_address_is_refused_in_either_mode(address: str) -> None:
    assert PUBLIC.refuse_reason(address) is not None
    assert PRIVATE.refuse_reason(address) is not None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_form_that_carries_it(address: IPv4Address) -> None:
    for policy in (PUBLIC, PRIVATE):
        reason = policy.refuse_reason(str(address))
        for form in ("::ffff:{}", "64:ff9b::{}"):
            carried = policy.refuse_reason(form.format(address))
            assert (carried is None) == (reason is None), (address, form)
        if reason is not None:
            assert policy.refuse_reason(f"2606:4700::5efe:{address}") is not None


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str))
def test_development_allows_no_less_than_production(address: str) -> None:
    if PRIVATE.refuse_reason(address) is not None:
        assert PUBLIC.refuse_reason(address) is not None


def test_a_reason_says_what_kind_of_address_it_is_and_not_which() -> None:
    assert PUBLIC.refuse_reason("::ffff:10.1.2.3") == "an address of a private network carried in IPv6"
    assert PUBLIC.refuse_reason("169.254.169.254") == "a link-local address"
