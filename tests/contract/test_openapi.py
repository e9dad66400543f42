"""The OpenAPI document is complete and honest: whatever is sent, the answer is a documented one."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from redis.asyncio import Redis
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from couponsvc.api.lane_document import GRAB_PATH
from couponsvc.api.problems import CATALOGUE
from couponsvc.ledger.drainer import Drainer
from couponsvc.processes.api import run_api
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from tests.conftest import emptied, migrated, no_task_left, settings_for
from tests.integration.house import House
from tests.servers import PostgresServer, RedisServer

EXPLORE = "COUPONSVC_FUZZ" in os.environ
"""Set it to send more and other requests in each run.

Else each sends the same, so that a failure can be repeated.
"""
CASES_PER_OPERATION = 24 if EXPLORE else 12
EXPECTED = {
    schemathesis.GenerationMode.POSITIVE: {200, 201, 404},
    schemathesis.GenerationMode.NEGATIVE: {404, 422},
}
"""What must have been met at least, or the requests were not worth sending."""
KNOWN = {
    "program_id": "test",
    "template_id": "dining-20",
    "drop_id": "wed",
    "out_request_no": "n-p1",
    "subscription_id": "sub_1",
}
"""What exists already; random names alone would only ever meet 404."""


@dataclass
class Served:
    """The whole service over real HTTP, the lane in front."""

    url: str
    tokens: dict[str, str]
    document: dict[str, Any]


@pytest.fixture(scope="module")
async def served(redis_server: RedisServer, postgres_server: PostgresServer) -> AsyncIterator[Served]:
    """One for all: they add to what is there, and ask for nothing that another could have taken."""
    async with no_task_left(), migrated(postgres_server) as database:
        pool = await open_pool(database)
        with emptied(redis_server) as redis_url:
            redis = open_redis(redis_url)
            async with serving(settings_for(redis_url, database), pool, redis) as served:
                yield served
            await redis.aclose()
        pool.terminate()


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[Served]:
    settings = settings.model_copy(
        update={"port": free_port(), "confirm_wait_ms": 500, "webhook_allow_private": True}
    )
    stop = asyncio.Event()
    async with House.open(settings, pool, redis) as house:
        await house.drop("wed", quantity=50)
        await house.issue("wed", "p1")
        drainer = await Drainer.open(settings)
        tasks = [asyncio.create_task(run_api(settings, stop)), asyncio.create_task(drainer.run(stop))]
        url = f"http://127.0.0.1:{settings.port}"
        try:
            await ready(url)
            yield Served(url, house.tokens, house.app.openapi())
        finally:
            stop.set()
            await asyncio.gather(*tasks)
            await drainer.close()


@pytest.fixture(autouse=True)
def _no_task_left_behind() -> None:
    """Tasks of the service come and go over the tests; `served` checks at the end."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def ready(url: str) -> None:
    async with httpx2.AsyncClient() as client:
        for _ in range(200):
            with contextlib.suppress(httpx2.TransportError):
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    pytest.fail("the service did not become ready")


@pytest.mark.slow  # some hundred generated requests
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
async def test_no_answer_is_undocumented(served: Served, mode: schemathesis.GenerationMode) -> None:
    met = await asyncio.to_thread(send_everything, served, mode)
    assert 500 not in met
    assert EXPECTED[mode] <= met


def send_everything(served: Served, mode: schemathesis.GenerationMode) -> set[int]:
    """Send generated requests to every operation; returns the statuses that were met."""
    met: set[int] = set()
    schema = schemathesis.openapi.from_dict(served.document)
    with requests.Session() as session:
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found.err()
            with contextlib.suppress(Unsatisfiable):  # an operation without input has no wrong input
                met |= send_to(found.ok(), served, mode, session)
    return met


def send_to(
    operation: APIOperation[Any, Any, Any, Any],
    served: Served,
    mode: schemathesis.GenerationMode,
    session: requests.Session,
) -> set[int]:
    met: set[int] = set()
    partners = operation.path == GRAB_PATH or operation.path.startswith("/v1/subscriptions")
    token = served.tokens["bank-a" if partners else "operator"]

    @hypothesis_settings(
        max_examples=CASES_PER_OPERATION,
        derandomize=not EXPLORE,
        deadline=None,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def send(case: "schemathesis.Case[Any]", known: bool) -> None:  # noqa: FBT001 - hypothesis names arguments
        if mode is schemathesis.GenerationMode.POSITIVE:
            say_what_a_schema_cannot(case)
            if known:
                name_what_exists(case.path_parameters)
                name_what_exists(case.body if isinstance(case.body, dict) else {})
        answer = case.call_and_validate(
            served.url, session=session, headers={"Authorization": f"Bearer {token}"}
        )
        met.add(answer.status_code)

    send()
    return met


def say_what_a_schema_cannot(case: "schemathesis.Case[Any]") -> None:
    """A window opens before it closes, within two centuries; a URL leads where it may be called.

    And 10.0 is an integer to a schema only.
    """
    if not isinstance(case.body, dict):
        return
    assume(not any(isinstance(value, float) for value in case.body.values()))
    if "opens_at" in case.body:
        case.body["opens_at"] = "2026-10-01T10:00:00+08:00"
        case.body["closes_at"] = "2026-10-01t12:30:00.5z"
    if "from" in case.body:
        case.body["from"] = "2026-10-01T10:00:00+08:00"
        case.body["to"] = "2026-10-01t12:30:00.5z"
    if "url" in case.body:
        case.body["url"] = f"http://127.0.0.1:9999/{len(str(case.body['url']))}"


def name_what_exists(names: Any) -> None:
    names.update({name: value for name, value in KNOWN.items() if name in names})
    if "partners" in names:
        names["partners"] = ["bank-a"]
    if names.get("drop_ids"):
        names["drop_ids"] = ["wed"]


async def test_every_answer_of_the_contract_to_a_grab_is_documented(served: Served) -> None:
    answers = served.document["paths"][GRAB_PATH]["post"]["responses"]
    assert set(answers) == {
        "200", "201", "202", "401", "403", "404", "409", "413", "422", "429", "500", "503",
    }  # fmt: skip
    codes = {
        code
        for answer in answers.values()
        for code in answer["content"].get("application/problem+json", {}).get("examples", {})
    }
    assert codes >= {
        "sold_out", "person_limit", "request_mismatch", "not_started", "ended", "paused", "not_eligible",
        "unknown_drop", "unauthenticated", "body_too_large", "invalid_request", "rate_limited", "overloaded",
        "rebuilding", "gate_unavailable",
    }  # fmt: skip


async def test_every_example_fits_its_schema(served: Served) -> None:
    import jsonschema_rs  # noqa: PLC0415 - comes with schemathesis

    checked = 0
    for _, media in media_types(served.document):
        validator = jsonschema_rs.validator_for(
            {**media["schema"], "components": served.document["components"]}
        )
        for example in examples(media):
            validator.validate(example)
            checked += 1
    for schema in served.document["components"]["schemas"].values():
        for example in schema.get("examples", []):
            jsonschema_rs.validator_for({**schema, "components": served.document["components"]}).validate(
                example
            )
            checked += 1
    assert checked > 100


async def test_every_problem_is_documented_where_it_can_be_met(served: Served) -> None:
    text = json.dumps(served.document)
    unreachable = {"not_found", "method_not_allowed"}  # of no operation
    unreachable |= {"malformed_request", "request_timeout", "head_too_large"}  # answered before one is found
    for code in set(CATALOGUE) - unreachable:
        assert f'"{code}"' in text, code


async def test_operations_have_stable_names_and_a_summary(served: Served) -> None:
    operations = [operation for item in served.document["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["summary"] and operation["tags"] for operation in operations)


def media_types(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, media)
        for item in document["paths"].values()
        for operation in item.values()
        for part in [operation.get("requestBody", {}), *operation["responses"].values()]
        for name, media in part.get("content", {}).items()
    ]


def examples(media: dict[str, Any]) -> list[Any]:
    single = [media["example"]] if "example" in media else []
    return single + [example["value"] for example in media.get("examples", {}).values()]
