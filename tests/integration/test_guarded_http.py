"""Posting to URLs of others: the address connected to is what counts, and nobody takes longer than agreed."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import uvloop

from couponsvc.support.guarded_http import GuardedClient, PostResult
from couponsvc.support.guarded_url import TooManyLookUps, UrlRefused, check_url
from couponsvc.support.public_addresses import AddressPolicy
from tests.integration.scripted_server import Reaction, Script, answer, hangs_up, is_silent, says, scripted
from tests.integration.tls_authority import Authority

pytestmark = pytest.mark.slow  # receivers that hang, drip and are given up

BODY = b"x" * 100_000
PUBLIC = AddressPolicy(allow_private=False)
PRIVATE = AddressPolicy(allow_private=True)
OK = says(answer(200, b"LEAKED body"))
CHANGED = "the receiver changed the protocol"
METADATA = "169.254.169.254"
NAME = "receiver.test"


class Resolver:
    """Answers the n-th question with the n-th answer, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = answers
        self.names: list[str] = []

    async def __call__(self, name: str) -> Sequence[str]:
        self.names.append(name)
        return self.answers[min(len(self.names), len(self.answers)) - 1]


@contextlib.asynccontextmanager
async def client(
    policy: AddressPolicy = PRIVATE,
    *,
    timeout_s: float = 5,
    look_up: Callable[[str], Awaitable[Sequence[str]]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[GuardedClient]:
    made = GuardedClient(policy, timeout_s=timeout_s, tls=tls, look_up=look_up or Resolver(["127.0.0.1"]))
    try:
        yield made
    finally:
        await made.close()


async def post(made: GuardedClient, url: str, body: bytes = BODY) -> PostResult:
    result = await made.post(url, {"webhook-id": "evt_1", "content-type": "application/json"}, body)
    assert "LEAKED" not in result.error, "what a receiver says is not passed on"
    assert (result.error == "") == (result.status is not None and 200 <= result.status < 300)
    return result


def named(script: Script) -> str:
    """The script's URL by a name that no real resolver knows."""
    return script.url.replace("127.0.0.1", NAME) + "/hook?a=1"


async def gone(script: Script) -> None:
    """Every connection to the script has ended, and there was one."""
    give_up_at = time.monotonic() + 2
    while script.open_count and time.monotonic() < give_up_at:
        await asyncio.sleep(0.01)
    assert script.connections_count > 0
    assert script.open_count == 0


async def test_what_is_sent_arrives_whole_under_the_url_s_own_name() -> None:
    async with scripted(OK) as script, client() as made:
        assert (await post(made, named(script))).status == 200
        head, _, body = script.requests[0].partition(b"\r\n\r\n")
        assert body == BODY
        port = script.url.rpartition(":")[2]
        assert head.decode().split("\r\n") == [
            "POST /hook?a=1 HTTP/1.1",
            f"Host: {NAME}:{port}",
            "webhook-id: evt_1",
            "content-type: application/json",
            "Content-Length: 100000",
        ]


# --- where it goes --------------------------------------------------------------------------------


async def test_a_name_that_turns_private_after_registration_is_not_followed() -> None:
    look_up = Resolver(["93.184.215.14"], ["127.0.0.1"])
    async with scripted(OK) as script:
        url = named(script).replace("http:", "https:")
        await check_url(url, PUBLIC, look_up=look_up)
        async with client(PUBLIC, look_up=look_up) as made:
            result = await post(made, url)
        assert (
            result.error == "The host's name leads to a loopback address; point it at public addresses only."
        )
        assert script.connections_count == 0


async def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    look_up = Resolver(["127.0.0.1"], [METADATA])
    async with scripted(OK) as script, client(look_up=look_up) as made:
        assert (await post(made, named(script))).status == 200
        assert look_up.names == [NAME], "one look-up for check and connection"


@pytest.mark.parametrize(
    "addresses",
    [
        [METADATA],
        ["127.0.0.1", METADATA],
        [METADATA, "127.0.0.1"],
        ["127.0.0.1", "fe80::1%lo"],
        ["fd00:ec2::254"],
    ],
)
async def test_one_refused_address_refuses_the_name_also_in_development(addresses: list[str]) -> None:
    look_up = Resolver(addresses)
    async with scripted(OK) as script, client(look_up=look_up) as made:
        result = await post(made, named(script))
        assert result.status is None
        assert "leads to" in result.error
        assert not any(address in result.error for address in addresses)
        assert script.connections_count == 0
        with pytest.raises(UrlRefused, match="leads to"):
            await check_url(named(script), PRIVATE, look_up=look_up)


async def test_the_peer_of_the_socket_is_looked_at_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Diverted(socket.socket):
        def getpeername(self) -> tuple[str, int]:
            return METADATA, 80

    async with scripted(OK) as script, client() as made:
        monkeypatch.setattr(socket, "socket", Diverted)
        result = await post(made, script.url)
        assert "leads elsewhere" in result.error
        assert script.requests == []


async def test_our_own_bound_of_look_ups_is_not_told_as_the_receiver_s_failure() -> None:
    async def full(_name: str) -> Sequence[str]:
        raise TooManyLookUps

    async with scripted(OK) as script, client(look_up=full) as made:
        with pytest.raises(TooManyLookUps):
            await post(made, named(script))
        assert script.connections_count == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_is_not_followed(status: int) -> None:
    async with scripted(OK) as inner:
        elsewhere = says(answer(status, b"", f"location: {inner.url}/LEAKED"))
        async with scripted(elsewhere) as script, client() as made:
            result = await post(made, script.url)
            assert (result.status, "redirects are not followed" in result.error) == (status, True)
            assert len(script.requests) == 1
        assert inner.connections_count == 0


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password LEAKED")
    netrc.chmod(0o600)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(netrc))
    async with scripted(says(answer(200, b"", "set-cookie: a=1; path=/"))) as script, client() as made:
        for _ in range(2):
            assert (await post(made, script.url)).status == 200
        for request in script.requests:
            head = request.partition(b"\r\n\r\n")[0].lower()
            assert b"authorization" not in head
            assert b"cookie" not in head


async def test_an_address_that_does_not_answer_costs_a_try_and_not_the_delivery() -> None:
    async with scripted(OK) as script, client(look_up=Resolver(["127.0.0.2", "127.0.0.1"])) as made:
        assert (await post(made, named(script))).status == 200


async def test_ipv6_is_checked_and_connected_to_alike() -> None:
    script = Script([OK])
    try:
        server = await asyncio.start_server(script.serve, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = server.sockets[0].getsockname()[1]
    async with server, client(look_up=Resolver(["::1"])) as made:
        assert (await post(made, f"http://[::1]:{port}/")).status == 200
        assert (await post(made, f"http://{NAME}:{port}/")).status == 200
        assert f"Host: [::1]:{port}".encode() in script.requests[0]
        result = await post(made, f"http://[::ffff:a9fe:a9fe]:{port}/")
        assert "a link-local address carried in IPv6" in result.error
    assert script.connections_count == 2


# --- how long it takes ------------------------------------------------------------------------------


def drips(first: bytes) -> Reaction:
    async def react(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    return react


@pytest.mark.parametrize(
    "reaction",
    [
        is_silent,
        drips(b"HTTP/1.1 200 O"),
        drips(b"HTTP/1.1 200 OK\r\na: "),
        drips(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n"),
    ],
    ids=["silent", "dripping reason", "dripping head", "dripping body"],
)
async def test_one_deadline_lies_over_silence_and_dripping(reaction: Reaction) -> None:
    async with scripted(reaction) as script, client(timeout_s=0.3) as made:
        result = await post(made, script.url)
        assert (result.status, result.error) == (
            None, "no complete answer within 0.3 s (waiting for the answer)",
        )  # fmt: skip
        assert 300 <= result.took_ms < 2_000


async def test_looking_up_and_handshakes_are_under_the_same_deadline() -> None:
    async def never(_name: str) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    async with client(timeout_s=0.2, look_up=never) as made:
        assert "(looking the name up)" in (await post(made, f"https://{NAME}/")).error
    async with scripted(is_silent) as script, client(timeout_s=0.2) as made:
        assert "(connecting)" in (await post(made, script.url.replace("http:", "https:"))).error
        await gone(script)


async def test_receivers_that_hang_leave_no_connection_and_no_room_taken() -> None:
    async with scripted(is_silent) as silent, scripted(OK) as well, client(timeout_s=0.2) as made:
        results = await asyncio.gather(
            *(post(made, silent.url) for _ in range(40)), *(post(made, well.url) for _ in range(8))
        )
        assert [result.status for result in results] == [None] * 40 + [200] * 8
        await gone(silent)


async def test_a_cancelled_post_hangs_up() -> None:
    async with scripted(is_silent) as script, client() as made:
        task = asyncio.create_task(post(made, script.url))
        while not script.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert script.open_count == 0


# --- what comes back --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reaction", "status"),
    [
        (says(b"HTTP/1.1 204 LEAKED\r\n\r\n"), 204),
        (says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), 200),
        (says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 X\r\n\r\n", answer(202, b"ok")), 202),
        (says(b"HTTP/1.1 103 X\r\nlink: a\r\n\r\nHTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"), 500),
        (says(answer(410, b"gone")), 410),
        (says(*(bytes([byte]) for byte in answer(429, b"LEAKED", "retry-after: 1"))), 429),
    ],
)
async def test_an_answer_counts_by_its_final_status(reaction: Reaction, status: int) -> None:
    async with scripted(reaction) as script, client() as made:
        assert (await post(made, script.url)).status == status


async def test_an_answer_may_end_with_the_connection() -> None:
    async def react(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nsome body")
        await writer.drain()
        writer.close()

    async with scripted(react) as script, client() as made:
        assert (await post(made, script.url)).status == 200


def breaks_off(*pieces: bytes) -> Reaction:
    async def react(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    return react


@pytest.mark.parametrize(
    ("reaction", "error"),
    [
        (hangs_up, "the receiver closed the connection without an answer"),
        (breaks_off(b"HTTP/1.1 200 O"), "the answer broke off"),
        (breaks_off(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"), "the answer broke off"),
        (breaks_off(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\na"), "the answer broke off"),
        (says(b"SSH-2.0-LEAKED\r\n"), "the answer is not HTTP/1.1"),
        (says(b"HTTP/1.1 2000 OK\r\n\r\n"), "the answer is not HTTP/1.1"),
        (says(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: LEAKED\r\n\r\n"), CHANGED),
        (says(b"HTTP/1.1 200 OK\r\n" + b"a: LEAKED\r\n" * 9_000), "the head of the answer is too long"),
        (says(b"HTTP/1.1 103 X\r\n\r\n" * 9_000), "the head of the answer is too long"),
    ],
)  # fmt: skip
async def test_half_an_answer_or_none_is_a_failure(reaction: Reaction, error: str) -> None:
    async with scripted(reaction) as script, client() as made:
        assert (await post(made, script.url))[:2] == (None, error)


async def test_a_huge_answer_is_cut_and_counts_by_its_status() -> None:
    sent = 0

    async def react(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"LEAKED" * 10_000)
                await writer.drain()
                sent += 60_000

    async with scripted(react) as script, client() as made:
        assert (await post(made, script.url)).status == 200
    assert sent < 20_000_000, "the rest fills the kernel's buffers at most"


async def test_a_refused_connection_is_told_in_words_of_ours() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with client() as made:
            assert (
                await post(made, f"http://127.0.0.1:{port}/")
            ).error == "connecting failed: Connection refused"

    async def unknown(_name: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with client(look_up=unknown) as made:
        error = (await post(made, f"https://{NAME}/")).error
        assert error == "the name could not be looked up: Name or service not known"
        with pytest.raises(UrlRefused, match="no address"):
            await check_url(f"https://{NAME}/", PUBLIC, look_up=unknown)


@pytest.mark.parametrize("value", ["a\r\nhost: b", "a\nb", "a\rb", "\u00e9"])
async def test_a_header_cannot_bring_another_one(value: str) -> None:
    async with client() as made:
        with pytest.raises(ValueError, match="line break"):
            await made.post("http://127.0.0.1:9/", {"webhook-id": value}, b"")


# --- connections are used again, and only clean ones ----------------------------------------------------


async def test_a_connection_serves_one_post_after_the_other() -> None:
    async with scripted(OK) as script, client() as made:
        for _ in range(5):
            assert (await post(made, script.url)).status == 200
        assert script.connections_count == 1
        await asyncio.gather(*(post(made, script.url) for _ in range(20)))
        before = script.connections_count
        await asyncio.gather(*(post(made, script.url) for _ in range(8)))
        assert script.connections_count == before, "eight were kept"


async def test_a_connection_closed_while_idle_is_no_failure_of_the_receiver() -> None:
    async with scripted(OK, hangs_up, OK) as script, client() as made:
        assert (await post(made, script.url)).status == 200
        assert (await post(made, script.url)).status == 200
        assert script.connections_count == 2
    async with scripted(OK, breaks_off(b"HTTP/1.1 2"), OK) as script, client() as made:
        assert (await post(made, script.url)).status == 200
        assert (await post(made, script.url)).error == "the answer broke off", "it had begun to answer"
    async with scripted(hangs_up, OK) as script, client() as made:
        assert (await post(made, script.url)).status is None, "a new connection is not tried twice"


@pytest.mark.parametrize(
    "reaction",
    [
        says(answer(200, b"", "connection: close")),
        says(answer(200, b"a") + answer(200, b"LEAKED")),
        says(answer(200, b"a") + b"garbage"),
        says(answer(200, b"a"), answer(200, b"LEAKED")),
        says(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ],
)
async def test_an_answer_is_never_taken_for_that_of_another_request(reaction: Reaction) -> None:
    async with scripted(reaction, says(answer(500, b""))) as script, client() as made:
        assert (await post(made, script.url)).status == 200
        await asyncio.sleep(0.05)
        assert (await post(made, script.url)).status == 500
        assert script.connections_count == 2


async def test_a_receiver_that_answers_before_it_has_heard_all_is_believed() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(413, b""))
        await asyncio.sleep(0.2)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, client() as made:
        assert (await post(made, f"http://127.0.0.1:{port}/", bytes(20_000_000))).status == 413


async def test_a_closed_client_keeps_nothing() -> None:
    async with scripted(OK) as script, client() as made:
        await post(made, script.url)
        await made.close()
        await asyncio.sleep(0.05)
        assert script.open_count == 0
        await post(made, script.url)
        await asyncio.sleep(0.05)
        assert script.open_count == 0


# --- TLS ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[tuple[str, Script]]:
    script = Script([OK])
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://{NAME}:{server.sockets[0].getsockname()[1]}/hook", script
    finally:
        server.close()
        while script.open_count:
            await asyncio.sleep(0.005)


async def test_tls_proves_the_name_of_the_url_over_the_checked_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = authority.server(NAME)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with tls_server(context) as (url, script), client(tls=authority.client()) as made:
        for _ in range(2):
            assert (await post(made, url)).status == 200
        assert names == [NAME]
        assert script.requests[1].endswith(BODY)


async def test_tls_proves_an_address_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with tls_server(authority.server("127.0.0.1")) as (url, _), client(tls=authority.client()) as made:
        assert (await post(made, url.replace(NAME, "127.0.0.1"))).status == 200


async def test_a_certificate_of_another_name_or_authority_gets_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with tls_server(authority.server("other.test")) as (url, script):
        async with client(tls=authority.client()) as made:
            error = (await post(made, url)).error
            assert error.startswith("the receiver's certificate is refused: Hostname mismatch")
        async with client() as made:
            assert (await post(made, url)).error.startswith("the receiver's certificate is refused: ")
        assert script.requests == []


async def test_a_receiver_without_tls_gets_nothing() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(400, b"LEAKED"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, client() as made:
        result = await post(made, f"https://127.0.0.1:{port}/")
        assert result.status is None
        assert result.error.startswith("TLS failed: ")


def test_the_relay_s_own_event_loop_behaves_alike(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def scenario() -> None:
        async with tls_server(authority.server(NAME)) as (url, script):
            async with client(tls=authority.client()) as made:
                statuses = [(await post(made, url)).status for _ in range(3)]
                assert statuses == [200, 200, 200]
                assert script.connections_count == 1
            async with client() as made:
                assert "certificate is refused" in (await post(made, url)).error
        async with scripted(OK, hangs_up, OK, is_silent) as script, client(timeout_s=0.3) as made:
            statuses = [(await post(made, script.url)).status for _ in range(3)]
            assert statuses == [200, 200, None]
            assert "a link-local address" in (await post(made, f"http://[::ffff:{METADATA}]/")).error
        async with scripted(is_silent) as script, client(timeout_s=0.2) as made:
            assert "(connecting)" in (await post(made, script.url.replace("http:", "https:"))).error
            await gone(script)
            assert "(waiting for the answer)" in (await post(made, script.url)).error
            await gone(script)

    uvloop.run(scenario())
