"""Following the feed on the wire: without a hot loop, through a restart, and no longer than is wanted."""

import asyncio
import time

import pytest

from couponsvc.client import ApiRefused, AsyncPartnerClient, Retries
from tests.integration.scripted_server import Reaction, Script, hangs_up, is_silent, problem, says, scripted
from tests.integration.test_client_partner import QUICK, SECRET, calling, page

pytestmark = pytest.mark.slow  # services that are away for seconds

EMPTY_FOR_S = 1.0
NOBODY_FOR_S = 1.0
WOULD_HAVE_GIVEN_UP = Retries(attempts_max_count=2, pause_s=0.01, pause_max_s=0.05)
AT_ONCE_S = 5.0
"""Far below the pauses and waits that are cut short here, far above what a busy machine needs."""

kinds = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])


@kinds
@pytest.mark.parametrize("wait_s", [0, 0.5, 20])
async def test_a_service_that_answers_empty_pages_at_once_is_not_asked_in_a_hot_loop(
    kind: str, wait_s: float
) -> None:
    ends_at_s = time.monotonic() + EMPTY_FOR_S

    async def empty_for_a_while(writer: asyncio.StreamWriter) -> None:
        writer.write(page(after="4") if time.monotonic() < ends_at_s else page(5, after="5"))

    async with scripted(empty_for_a_while) as script, calling(kind, script.url) as caller:
        found = await caller.events(1, after="4", wait_s=wait_s)
    assert [event.id for _, event in found] == ["evt_5"]
    assert len(script.requests) <= 8  # pauses of 0.1, 0.2, 0.4, 0.8 s at least


@kinds
async def test_a_restart_of_the_service_does_not_end_a_follower(kind: str) -> None:
    old, new = Script([says(page(1, after="1")), hangs_up]), Script([says(page(2, after="2"))])
    server = await asyncio.start_server(old.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with calling(kind, f"http://127.0.0.1:{port}", retries=WOULD_HAVE_GIVEN_UP) as caller:
        reading = asyncio.create_task(caller.events(2, wait_s=20))
        while len(old.requests) < 2:
            await asyncio.sleep(0.005)
        server.close()
        await asyncio.sleep(NOBODY_FOR_S)
        async with await asyncio.start_server(new.serve, "127.0.0.1", port):
            found = await reading
    assert [(cursor, event.id) for cursor, event in found] == [("1", "evt_1"), ("2", "evt_2")]


@kinds
async def test_a_refusal_that_stays_ends_a_follower(kind: str) -> None:
    refused = problem(401, "unauthenticated")
    async with (
        scripted(says(page(after="4")), hangs_up, says(refused)) as script,
        calling(kind, script.url) as caller,
    ):
        with pytest.raises(ApiRefused, match="401 unauthenticated"):
            await caller.events(1, after="4")
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("reaction", "retries"),
    [
        (is_silent, QUICK),
        (hangs_up, Retries(attempts_max_count=2, pause_s=600.0, pause_max_s=600.0)),
        (says(problem(503, "overloaded", "retry-after: 200")), QUICK),
    ],
    ids=["while it waits for events", "in a pause", "in a pause that it was told"],
)
async def test_cancelling_a_follower_ends_it_at_once(reaction: Reaction, retries: Retries) -> None:
    async def follow(client: AsyncPartnerClient) -> None:
        async for _ in client.events(wait_s=20):
            pass

    async with (
        scripted(reaction) as script,
        AsyncPartnerClient(script.url, "k-1", SECRET, retries=retries) as client,
    ):
        following = asyncio.create_task(follow(client))
        while not script.requests:
            await asyncio.sleep(0.005)
        following.cancel()
        await asyncio.wait([following], timeout=AT_ONCE_S)
        assert following.cancelled()
        assert len(script.requests) == 1
