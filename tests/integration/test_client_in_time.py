"""An attempt ends in time, whatever pace its answer comes at."""

import asyncio
import time

import pytest

from couponsvc.client import ONCE, AnswerLost, PartnerClient, Unreachable
from tests.integration.scripted_server import Reaction, answer, is_silent, problem, says, scripted
from tests.integration.test_client_partner import QUICK, SECRET, VOUCHER, calling

pytestmark = pytest.mark.slow  # waits for deadlines of seconds

TIMEOUT_S = 0.6
BYTE_EVERY_S = 0.1
"""Shorter than the timeout, so that no single read is ever late."""
IN_TIME_S = 8.0
"""Far above the timeout, far below what the drips below take (at least 20 s)."""

kinds = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])


def drips(at_once: bytes, slowly: bytes) -> Reaction:
    async def react(writer: asyncio.StreamWriter) -> None:
        writer.write(at_once)
        for number in range(len(slowly)):
            writer.write(slowly[number : number + 1])
            await writer.drain()
            await asyncio.sleep(BYTE_EVERY_S)

    return react


WHOLE = answer(200, VOUCHER, "x-padding: " + "x" * 200)
HEAD, BODY = WHOLE.split(b"{", 1)[0], VOUCHER
dripped = pytest.mark.parametrize(
    "drip", [drips(HEAD, BODY), drips(b"", WHOLE), drips(HEAD[:5], WHOLE[5:])], ids=["body", "all", "head"]
)


@kinds
@dripped
async def test_an_answer_that_drips_is_no_answer(kind: str, drip: Reaction) -> None:
    async with (
        scripted(drip) as script,
        calling(kind, script.url, timeout_s=TIMEOUT_S, retries=ONCE) as caller,
    ):
        began_s = time.monotonic()
        with pytest.raises(AnswerLost):
            await caller.call("voucher", "vch_1_1")
        assert (await caller.call("grab", "d1", "p", "n")).outcome == "lost"
        assert TIMEOUT_S < time.monotonic() - began_s < IN_TIME_S
    assert len(script.requests) == 2


@kinds
async def test_after_a_drip_the_same_number_is_asked_again_and_not_confused(kind: str) -> None:
    async with (
        scripted(drips(HEAD, BODY), says(answer(200, VOUCHER))) as script,
        calling(kind, script.url, timeout_s=TIMEOUT_S, retries=QUICK) as caller,
    ):
        assert (await caller.call("grab", "d1", "p", "n")).outcome == "repeated"
        assert (await caller.call("voucher", "vch_1_1")).voucher_id == "vch_1_1"
    assert script.requests[0].partition(b"\r\n\r\n")[2] == script.requests[1].partition(b"\r\n\r\n")[2]
    assert len(script.requests) == 3


@kinds
async def test_a_peer_that_never_shakes_hands_is_not_reached_so_that_nothing_was_sent(kind: str) -> None:
    async with (
        scripted(is_silent) as script,
        calling(kind, script.url.replace("http:", "https:"), timeout_s=TIMEOUT_S, retries=ONCE) as caller,
    ):
        began_s = time.monotonic()
        with pytest.raises(Unreachable):
            await caller.call("subscribe", "https://x.example", ["t"])
        assert time.monotonic() - began_s < IN_TIME_S


@kinds
async def test_a_call_that_gets_no_connection_in_time_sent_nothing(kind: str) -> None:
    async with (
        scripted(is_silent) as script,
        calling(kind, script.url, timeout_s=TIMEOUT_S, connections_max_count=1, retries=ONCE) as caller,
    ):
        held = asyncio.create_task(caller.call("event_page", wait_s=2))
        while not script.requests:
            await asyncio.sleep(0.005)
        with pytest.raises(Unreachable):
            await caller.call("subscribe", "https://x.example", ["t"])
        with pytest.raises(AnswerLost):
            await held
    assert len(script.requests) == 1


@kinds
async def test_a_connection_is_kept_for_the_next_call(kind: str) -> None:
    async with scripted(says(answer(200, VOUCHER))) as script, calling(kind, script.url) as caller:
        for _ in range(3):
            assert (await caller.call("voucher", "vch_1_1")).voucher_id == "vch_1_1"
    assert (len(script.requests), script.connections_count) == (3, 1)


@kinds
async def test_a_date_in_retry_after_is_ignored(kind: str) -> None:
    dated = problem(503, "overloaded", "retry-after: Fri, 31 Dec 2999 23:59:59 GMT")
    async with (
        scripted(says(dated), says(answer(200, VOUCHER))) as script,
        calling(kind, script.url, retries=QUICK) as caller,
    ):
        assert (await caller.call("voucher", "vch_1_1")).voucher_id == "vch_1_1"


def test_a_closed_client_sends_nothing() -> None:
    client = PartnerClient("http://127.0.0.1:1", "k-1", SECRET)
    client.close()
    with pytest.raises(RuntimeError):
        client.voucher("vch_1_1")
