"""URLs that partners may register, and the corpus of those that have led others' services astray."""

import asyncio
import socket
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponsvc.support import guarded_url
from couponsvc.support.guarded_url import NameLookup, Target, UrlRefused, check_url, read_url
from couponsvc.support.public_addresses import AddressPolicy

PUBLIC = AddressPolicy(allow_private=False)
PRIVATE = AddressPolicy(allow_private=True)

NAME = "bank-a.example"


def target(host: str = NAME, path: str = "/", *, port: int = 443) -> Target:
    return Target(secure=True, host=host, port=port, path=path, literal=host[0] in "268")


ACCEPTED = {
    "https://bank-a.example/hook": target(path="/hook"),
    "https://bank-a.example": target(),
    "https://bank-a.example?a=1": target(path="/?a=1"),
    "HTTPS://Bank-A.Example:443/A%2fb?x=y%20z&u=/?": target(path="/A%2fb?x=y%20z&u=/?"),
    "https://bank-a.example:8443/": target(port=8443),
    "https://xn--bcher-kva.example/": target("xn--bcher-kva.example"),
    "https://a_b.example/": target("a_b.example"),
    "https://8.8.8.8/": target("8.8.8.8"),
    "https://[2606:4700:4700::1111]:8443/h": target("2606:4700:4700::1111", "/h", port=8443),
    "https://[2606:4700:4700:0:0:0:0:1111]/": target("2606:4700:4700::1111"),
    "https://[64:ff9b::8.8.8.8]/": target("64:ff9b::808:808"),
    "https://1.example/": target("1.example"),
    "https://bank-a.example//double/../up": target(path="//double/../up"),
}
DEVELOPMENT = [
    "http://127.0.0.1:9000/hook",
    "http://localhost/hook",
    "http://bank-a.example:80/",
    "https://10.1.2.3/",
    "https://[::1]:8443/",
    "http://192.168.1.1:65535/",
]
REFUSED = [
    # another scheme, or none
    "", "hook", "//bank-a.example/", "bank-a.example/hook", "ftp://bank-a.example/", "file:///etc/passwd",
    "gopher://bank-a.example/", "javascript:alert(1)", "https:bank-a.example", "https:/bank-a.example",
    " https://bank-a.example/", "https://bank-a.example/ ", "https://bank-a.example/\n", "https://bank-a\t.example/",
    "https://bank-a.example/\r\nhost: x", "https://bank-a.example/a b", "https://bank-a.example/\x00",
    # no host, or none of the DNS
    "https://", "https:///hook", "https://:443/", "https://?x", "https://.example/", "https://a..example/",
    "https://-a.example/", "https://a-.example/", "https://bank-a.example./",
    "https://" + "a." * 127 + "example/",
    "https://" + "a" * 64 + ".example/", "https://bank-a.example%2f@8.8.8.8/", "https://bank%2da.example/",
    "https://*.example/", "https://b\u00fccher.example/", "https://bank-a.example/\u00fc", "https://\uff11\uff12\uff17.0.0.1/",
    "https://bank-a\u3002example/",
    # a user, a fragment, two hosts in one
    "https://user@bank-a.example/", "https://user:secret@bank-a.example/", "https://@bank-a.example/",
    "https://bank-a.example@169.254.169.254/", "https://bank-a.example#@169.254.169.254/",
    "https://bank-a.example/#a", "https://bank-a.example#", "https://bank-a.example\\@169.254.169.254/",
    "https:\\\\bank-a.example\\", "https://bank-a.example,169.254.169.254/", "https://[bank-a.example]/",
    # ports
    "https://bank-a.example:0/", "https://bank-a.example:22/", "https://bank-a.example:25/",
    "https://bank-a.example:80/", "https://bank-a.example:1023/", "https://bank-a.example:65536/",
    "https://bank-a.example:99999/", "https://bank-a.example:/", "https://bank-a.example:+443/",
    "https://bank-a.example:443:443/", "https://bank-a.example:https/",
    # addresses in unusual forms, whatever they are
    "https://2130706433/", "https://134744072/", "https://0x7f000001/", "https://0x08080808/", "https://017700000001/",
    "https://0177.0.0.1/", "https://0x7f.0.0.1/", "https://127.1/", "https://127.0.1/", "https://8.8.8/",
    "https://127.0.0.1./", "https://08.8.8.8/", "https://8.8.8.8.8/", "https://256.8.8.8/", "https://1.2.3.0x4/",
    "https://a.b.0x/", "https://[127.0.0.1]/", "https://[8.8.8.8]/", "https://::1/", "https://[::1/", "https://[]/",
    "https://[2606:4700::1111%251]/", "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[v1.a]/",
    "https://0/", "https://0x/",
    # link-local, metadata and what is no unicast address
    "https://169.254.169.254/latest/meta-data/", "https://[::ffff:169.254.169.254]/", "https://[::ffff:a9fe:a9fe]/",
    "https://[::169.254.169.254]/", "https://[64:ff9b::a9fe:a9fe]/", "https://[64:ff9b:1::a9fe:a9fe]/",
    "https://[2002:a9fe:a9fe::]/", "https://[2001:0:a9fe:a9fe::1]/", "https://[fe80::1]/", "https://[fd00:ec2::254]/",
    "https://100.100.100.200/", "https://168.63.129.16/", "https://0.0.0.0/", "https://[::]/", "https://224.0.0.1/",
    "https://[ff02::1]/", "https://255.255.255.255/", "https://192.0.0.192/",
]  # fmt: skip


@pytest.mark.parametrize("url", ACCEPTED)
def test_a_public_url_is_read_in_one_way(url: str) -> None:
    assert read_url(url, PUBLIC) == ACCEPTED[url]
    assert read_url(url, PRIVATE) == ACCEPTED[url]


@pytest.mark.parametrize("url", DEVELOPMENT)
def test_plain_http_and_private_addresses_are_for_development(url: str) -> None:
    read_url(url, PRIVATE)
    with pytest.raises(UrlRefused):
        read_url(url, PUBLIC)


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_leads_astray_is_refused_in_either_mode(url: str) -> None:
    for policy in (PUBLIC, PRIVATE):
        with pytest.raises(UrlRefused) as refusal:
            read_url(url, policy)
        assert str(refusal.value).endswith(".")


def test_a_url_has_a_length() -> None:
    room = guarded_url.URL_MAX_CHARS - len("https://bank-a.example/")
    read_url("https://bank-a.example/" + "a" * room, PUBLIC)
    with pytest.raises(UrlRefused, match="2048"):
        read_url("https://bank-a.example/" + "a" * (room + 1), PUBLIC)


@given(st.from_regex(r"https?://[^/?#]{0,20}(/[a-z0-9/]{0,5})?", fullmatch=True))
def test_whatever_is_accepted_has_a_host_that_only_one_reader_understands(url: str) -> None:
    try:
        target = read_url(url, PRIVATE)
    except UrlRefused:
        return
    assert target.authority.isascii()
    assert not set(target.authority) & set("@\\%# \r\n\t")
    if target.literal:
        socket.inet_pton(socket.AF_INET6 if ":" in target.host else socket.AF_INET, target.host)
    else:
        with pytest.raises(OSError, match="illegal IP address"):
            socket.inet_aton(target.host)


def test_the_host_header_names_the_port_only_where_it_must() -> None:
    for url, authority in (
        ("https://bank-a.example:443/", "bank-a.example"),
        ("https://bank-a.example:8443/", "bank-a.example:8443"),
        ("http://localhost:80/", "localhost"),
        ("http://localhost:8443/", "localhost:8443"),
        ("http://[::1]:8080/", "[::1]:8080"),
    ):
        assert read_url(url, PRIVATE).authority == authority


async def answers(*addresses: str) -> None:
    async def look_up(name: str) -> Sequence[str]:
        assert name == "bank-a.example"
        return addresses

    await check_url("https://bank-a.example/", PUBLIC, look_up=look_up)


async def test_every_address_of_a_name_counts() -> None:
    await answers("8.8.8.8", "2606:4700:4700::1111")
    for addresses in (
        ("10.0.0.1",),
        ("8.8.8.8", "10.0.0.1"),
        ("10.0.0.1", "8.8.8.8"),
        ("8.8.8.8", "::1"),
        ("2606:4700:4700::1111", "64:ff9b::a00:1"),
        ("8.8.8.8", "fe80::1%2"),
    ):
        with pytest.raises(UrlRefused, match="point it at public addresses only") as refusal:
            await answers(*addresses)
        assert not any(address in str(refusal.value) for address in addresses), (
            "that would be a resolver for all"
        )
    for count in (0, 65):
        with pytest.raises(UrlRefused, match="no address"):
            await answers(*["8.8.8.8"] * count)


async def test_a_name_that_is_not_found_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_url, "LOOKUP_S", 0.05)
    with pytest.raises(UrlRefused, match="could not be looked up within"):
        await check_url("https://bank-a.example/", PUBLIC, look_up=never)


async def never(_name: str) -> Sequence[str]:
    await asyncio.sleep(60)
    return []


async def test_the_system_s_resolver_is_asked_in_a_thread_of_its_own() -> None:
    look_up = NameLookup()
    assert "127.0.0.1" in await look_up("localhost")
    with pytest.raises(OSError):  # noqa: PT011 - its text is the resolver's
        await look_up("a..b")


async def test_one_name_server_that_hangs_does_not_hold_up_other_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    go_on = threading.Event()

    def resolve(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(name)
        if name.startswith("slow"):
            go_on.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 0))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(guarded_url, "LOOKUPS_MAX_COUNT", 3)
    look_up = NameLookup()
    waiting = [asyncio.create_task(look_up(name)) for name in ("slow-a", "slow-a", "slow-b")]
    await asyncio.sleep(0)
    assert await look_up("quick") == ["8.8.8.8"]
    waiting[0].cancel()
    third = asyncio.create_task(look_up("slow-c"))
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="too many names"):
        await look_up("quick")
    with pytest.raises(UrlRefused, match="try again"):
        await check_url("https://bank-a.example/", PUBLIC, look_up=look_up)
    go_on.set()
    assert await asyncio.gather(*waiting[1:], third) == [["8.8.8.8"]] * 3
    assert sorted(asked) == ["quick", "slow-a", "slow-b", "slow-c"], (
        "who asks for the same shares the look-up"
    )
    assert await look_up("quick") == ["8.8.8.8"]
