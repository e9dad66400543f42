"""The grab client on the wire: every way in which an answer can arrive, or not."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from couponsvc.client import (
    Answer,
    GrabClient,
    Retries,
    Unreachable,
    grab_until_answered,
)
from couponsvc.support.signing import HmacKey, verify
from tests.integration.scripted_server import (
    Reaction,
    Script,
    answer,
    hangs_up,
    is_silent,
    problem,
    says,
    scripted,
)

KEY = HmacKey("k-1", b"s" * 32)
QUICK = Retries(attempts_max_count=6, pause_s=0.001, pause_max_s=0.002)
VOUCHER = (
    b'{"voucher_id":"vch_1_1","drop_id":"d1","seq":1,"code":"C","person_token":"p","out_request_no":"n",'
    b'"status":"issued","face_value_fen":2000,"min_spend_fen":0,"issued_at":"a","valid_from":"b",'
    b'"valid_until":"c"}'
)


@contextlib.asynccontextmanager
async def served(
    *reactions: Reaction, connections: int = 4, timeout_s: float = 5.0
) -> AsyncIterator[tuple[GrabClient, Script]]:
    async with scripted(*reactions) as script:
        client = GrabClient(script.url, KEY, connections_max_count=connections, timeout_s=timeout_s)
        try:
            yield client, script
        finally:
            client.close()


async def test_an_issued_voucher_is_typed_and_keeps_its_bytes() -> None:
    async with served(says(answer(201, VOUCHER))) as (client, _):
        found = await client.grab("d1", "p", "n")
    assert (found.status, found.outcome, found.confirmed, found.body) == (201, "issued", True, VOUCHER)
    assert (found.voucher.seq, found.voucher.code) == (1, "C")
    assert 0 < found.sent_ns <= found.settled_ns <= time.time_ns()


async def test_requests_are_signed_so_that_the_service_can_verify_them() -> None:
    async with served(says(answer(200, VOUCHER))) as (client, script):
        await client.grab("d1", "p", "n|1", channel="app", region="370200")
        await client.look_up("d1", "n|1")
    for request, method, path in zip(
        script.requests, (b"POST", b"GET"), (b"/v1/drops/d1/grabs", b"/v1/drops/d1/grabs/n%7C1"), strict=True
    ):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(method + b" " + path + b" HTTP/1.1\r\n")
        headers = [
            (name, value) for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])
        ]
        assert verify(method, path, b"", headers, body, {"k-1": KEY}.get, time.time()) == "k-1"


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_an_answer_in_pieces_is_put_together(size: int) -> None:
    whole = answer(200, VOUCHER)
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    async with served(says(*pieces)) as (client, _):
        assert (await client.grab("d1", "p", "n")).body == VOUCHER


async def test_an_interim_answer_is_not_the_answer() -> None:
    async with served(says(b"HTTP/1.1 100 Continue\r\n\r\n", answer(201, VOUCHER))) as (client, _):
        assert (await client.grab("d1", "p", "n")).status == 201


async def test_a_connection_is_kept_and_one_that_closes_is_replaced() -> None:
    close = says(answer(200, VOUCHER, "connection: close"))
    async with served(says(answer(200, VOUCHER)), close, says(answer(200, VOUCHER))) as (client, script):
        assert [(await client.grab("d1", "p", "n")).status for _ in range(4)] == [200] * 4
        assert script.connections_count == 2


@pytest.mark.parametrize(
    "fault", [hangs_up, says(b"no HTTP at all\r\n\r\n"), says(answer(200, b"x" * 70_000))]
)
async def test_no_proper_answer_is_lost_and_the_next_request_is_not_confused(fault: Reaction) -> None:
    async with served(fault, says(answer(200, VOUCHER))) as (client, _):
        lost = await client.grab("d1", "p", "n")
        assert (lost.status, lost.outcome, lost.retryable, lost.confirmed) == (0, "lost", True, False)
        assert (await client.grab("d1", "p", "n")).status == 200


async def test_silence_is_lost_after_the_timeout() -> None:
    async with served(is_silent, timeout_s=0.1) as (client, _):
        began = time.monotonic()
        assert (await client.grab("d1", "p", "n")).outcome == "lost"
        assert time.monotonic() - began < 2


async def test_a_cancelled_request_takes_its_connection_with_it() -> None:
    """Otherwise the late answer would be taken for the next request's."""
    async with served(is_silent, says(answer(200, VOUCHER)), connections=1) as (client, script):
        waiting = asyncio.create_task(client.grab("d1", "p", "n-1"))
        while not script.requests:
            await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (await client.grab("d1", "p", "n-2")).status == 200
        assert script.connections_count == 2


async def test_an_abandoned_grab_arrives_and_its_answer_is_lost() -> None:
    async with served(says(answer(201, VOUCHER))) as (client, script):
        assert (await client.abandon_grab("d1", "p", "n")).outcome == "lost"
        while not script.requests:
            await asyncio.sleep(0.005)
        assert b'"out_request_no":"n"' in script.requests[0]
        assert (await client.grab("d1", "p", "n")).confirmed


async def test_connections_are_bounded_and_everybody_gets_a_turn() -> None:
    async with served(says(answer(200, VOUCHER)), connections=3) as (client, script):
        answers = await asyncio.gather(*(client.grab("d1", "p", f"n-{n}") for n in range(60)))
        assert {found.status for found in answers} == {200}
        assert script.most_open_count <= 3
        assert client.requests_count == 60


async def test_nobody_listening_is_told_apart_from_a_lost_answer() -> None:
    async with served(says(answer(200, VOUCHER))) as (_, script):
        url = script.url
    with pytest.raises(Unreachable):
        await GrabClient(url, KEY).grab("d1", "p", "n")


async def test_a_client_closed_while_it_connects_leaves_no_connection_behind() -> None:
    async with served(is_silent) as (client, script):
        connecting = asyncio.create_task(client.grab("d1", "p", "n"))
        await asyncio.sleep(0)  # one turn: it has begun to connect, and needs more of them to be done
        client.close()
        with pytest.raises(Unreachable, match="closed"):
            await connecting
        while script.open_count:
            await asyncio.sleep(0.005)
        assert script.requests == []


async def test_a_client_closed_while_somebody_waits_for_a_turn_makes_no_connection_for_it() -> None:
    async with served(is_silent, connections=1) as (client, script):
        both = [asyncio.create_task(client.grab("d1", "p", f"n-{number}")) for number in range(2)]
        while not script.requests:
            await asyncio.sleep(0.005)
        client.close()
        lost, refused = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(lost, Answer)
        assert lost.outcome == "lost"
        assert isinstance(refused, Unreachable)
        assert (len(script.requests), script.connections_count) == (1, 1)
        with pytest.raises(RuntimeError, match="closed"):
            await client.grab("d1", "p", "n")


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://x", "http://", "http://x/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        GrabClient(url, KEY)


async def test_retrying_goes_on_with_the_same_number_until_there_is_an_answer() -> None:
    pending = answer(202, b'{"status":"pending"}')
    script = (
        hangs_up,
        says(problem(503, "overloaded", retryable=True)),
        says(pending),
        says(problem(404, "unknown_request", retryable=True)),
        says(answer(200, VOUCHER)),
    )
    async with served(*script) as (client, served_script):
        found = await grab_until_answered(client, "d1", "p", "n", retries=QUICK)
        methods = [request.split(b" ", 1)[0] for request in served_script.requests]
        assert found.outcome == "repeated"
        assert methods == [b"POST", b"POST", b"POST", b"GET", b"POST"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(409, "sold_out"), (409, "person_limit"), (403, "not_eligible"), (422, "invalid_request")],
)
async def test_a_refusal_by_rule_is_not_asked_again(status: int, code: str) -> None:
    async with served(says(problem(status, code, retryable=True))) as (client, script):
        found = await grab_until_answered(client, "d1", "p", "n", retries=QUICK)
        assert (found.outcome, len(script.requests)) == (code, 1)


async def test_patience_ends_and_retry_after_is_kept() -> None:
    busy = problem(503, "overloaded", "retry-after: 0", retryable=True)
    async with served(says(busy)) as (client, script):
        found = await grab_until_answered(client, "d1", "p", "n", retries=QUICK)
        assert (found.status, found.retry_after_s, len(script.requests)) == (503, 0.0, 6)


def test_a_page_that_is_no_problem_has_the_status_for_an_outcome() -> None:
    for body in (b"<html>", b"", b'{"code":7}', b"\xff"):
        found = Answer(502, body)
        assert (found.outcome, found.retryable) == ("http_502", False)
