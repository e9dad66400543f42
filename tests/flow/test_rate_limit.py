"""A partner that sends more than was agreed is told so, in time and exactly; others do not notice."""

import asyncio
import base64
import dataclasses
from typing import Any

import httpx2

from couponsvc.client import GrabClient
from couponsvc.programs import admission
from couponsvc.support.postgres import open_pool
from couponsvc.values.rate import Rate
from tests.flow.conftest import Service, admit


async def limit(service: Service, rate: Rate | None, partner_id: str = "") -> None:
    """Before the partner's first grab, so that its key is read together with its rate."""
    pool = await open_pool(service.settings.postgres_dsn.get_secret_value(), max_size=1)
    partner_id = partner_id or service.credentials["partner"]["partner_id"]
    await admission.limit_partner(pool, "test", partner_id, rate)
    await pool.close()


async def signed(service: Service, client: GrabClient, drop_id: str, name: str) -> httpx2.Response:
    """One signed grab of person and number `name`, with its headers."""
    raw = client.grab_request(drop_id, f"p-{name}", f"n-{name}")
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    headers: Any = [(name, value) for name, value in lines if name != b"content-length"]
    async with httpx2.AsyncClient(base_url=service.url, trust_env=False, verify=False) as http:
        return await http.post(f"/v1/drops/{drop_id}/grabs", content=body, headers=headers)


async def test_past_its_rate_a_partner_is_told_when_to_ask_again(service: Service) -> None:
    await limit(service, Rate(per_second=1, burst_count=3))
    drop_id = await service.drop(10)
    with service.grabs() as client:
        answers = [await signed(service, client, drop_id, str(turn)) for turn in range(5)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
    refused = answers[3]
    assert refused.json()["code"] == "rate_limited"
    assert refused.json()["retryable"] is True
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["ratelimit-policy"] == '"grabs";q=1;w=1'
    assert refused.headers["ratelimit"] == '"grabs";r=0;t=1'
    assert (await service.settled(drop_id))["issued"] == 3


async def test_past_its_rate_a_partner_still_gets_the_answer_that_stands(service: Service) -> None:
    await limit(service, Rate(per_second=1, burst_count=3))
    drop_id = await service.drop(10)
    with service.grabs() as client:
        first = [await signed(service, client, drop_id, str(turn)) for turn in range(4)]
        again = await signed(service, client, drop_id, "0")
    assert [answer.status_code for answer in first] == [201, 201, 201, 429]
    assert (again.status_code, again.content) == (200, first[0].content)


async def test_what_was_refused_for_its_rate_is_granted_later_under_the_same_number(service: Service) -> None:
    await limit(service, Rate(per_second=5, burst_count=1))
    drop_id = await service.drop(10)
    statuses: list[int] = []
    with service.grabs() as client:
        await signed(service, client, drop_id, "first")
        while not statuses or statuses[-1] == 429:
            statuses.append((await signed(service, client, drop_id, "second")).status_code)
    assert statuses[0] == 429
    assert statuses[-1] == 201
    assert (await service.settled(drop_id))["issued"] == 2


async def test_a_partner_with_a_token_is_limited_too_and_another_one_is_not(service: Service) -> None:
    await limit(service, Rate(per_second=1, burst_count=2))
    pool = await open_pool(service.settings.postgres_dsn.get_secret_value(), max_size=1)
    names = [
        service.credentials["partner"]["partner_id"],
        f"other-{service.credentials['partner']['key_id']}",
    ]
    other = dataclasses.replace(
        service, credentials={**service.credentials, "partner": await admit(pool, service.settings, names[1])}
    )
    await pool.close()
    drop_id = await service.drop(10, partners=names)
    # Side by side: on a busy machine three of them one after the other last longer than the rate's second.
    told = await asyncio.gather(
        *(service.grab_with_token(drop_id, f"p{turn}", f"n{turn}") for turn in range(3))
    )
    assert sorted(told) == ["issued", "issued", "rate_limited"]
    assert [await other.grab_with_token(drop_id, f"p{turn}", f"n{turn}") for turn in range(5)] == [
        "issued"
    ] * 5


async def test_a_stranger_who_names_a_partners_key_uses_nothing_of_its_rate(service: Service) -> None:
    await limit(service, Rate(per_second=1, burst_count=3))
    drop_id = await service.drop(10)
    stranger = dataclasses.replace(
        service,
        credentials={
            **service.credentials,
            "partner": {**service.credentials["partner"], "secret": base64.b64encode(bytes(32)).decode()},
        },
    )
    with stranger.grabs() as client:
        told = {(await signed(service, client, drop_id, f"x{turn}")).status_code for turn in range(12)}
    assert told == {401}
    with service.grabs() as client:
        answers = [await signed(service, client, drop_id, str(turn)) for turn in range(3)]
    assert [answer.status_code for answer in answers] == [201] * 3
