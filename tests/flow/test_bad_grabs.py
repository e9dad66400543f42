"""Bad input to a grab: each gets a clear problem, and nothing is lost or left behind."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx2
import msgspec
import pytest

from couponsvc.support.signing import HmacKey, sign
from tests.flow.conftest import Service

GOOD = b'{"person_token":"p-1","out_request_no":"n-1"}'


async def post(
    service: Service,
    drop_id: str,
    content: "bytes | AsyncIterator[bytes]",
    headers: dict[str, str] | None = None,
    query: str = "",
) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=service.url, trust_env=False, verify=False) as http:
        return await http.post(f"/v1/drops/{drop_id}/grabs{query}", content=content, headers=headers)


def bearer(service: Service, who: str = "partner") -> dict[str, str]:
    return {"authorization": f"Bearer {service.credentials[who]['token']}"}


def signed(
    key: HmacKey, drop_id: str, body: bytes = GOOD, *, age_s: int = 0, query: bytes = b""
) -> dict[str, str]:
    path = f"/v1/drops/{drop_id}/grabs".encode()
    proof = sign(key, b"POST", path, query, body, created_s=int(time.time()) - age_s)
    return {name.decode(): value.decode() for name, value in proof}


async def untouched(service: Service, drop_id: str) -> None:
    figures = await service.operate("GET", f"/v1/drops/{drop_id}")
    assert (figures["available"], figures["pending"], figures["issued"]) == (5, 0, 0)


def problem(response: httpx2.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    body = msgspec.json.decode(response.content)
    assert (body["status"], body["code"], body["type"]) == (
        status,
        code,
        f"/problems/{code.replace('_', '-')}",
    )
    assert body["title"]
    assert isinstance(body["retryable"], bool)
    if status in (429, 503):
        assert response.headers["retry-after"]
    return str(body["detail"])


BODIES = {
    "empty": (b"", "malformed|truncated"),
    "malformed": (b'{"person_token":', "malformed|truncated"),
    "trailing": (GOOD + b"x", "malformed"),
    "not utf-8": (b'{"person_token":"\xff","out_request_no":"n"}', "utf-8|UTF-8|malformed"),
    "array": (b"[]", "object"),
    "number": (b"1", "object"),
    "duplicate": (b'{"person_token":"p-1","person_token":"p-2","out_request_no":"n-1"}', "twice"),
    "duplicate by escape": (
        b'{"person_token":"p-1","person\\u005ftoken":"p-2","out_request_no":"n-1"}',
        "twice",
    ),
    "nan": (b'{"person_token":"p-1","out_request_no":NaN}', "malformed"),
    "unknown field": (b'{"person_token":"p-1","out_request_no":"n-1","amount":1}', "amount"),
    "missing": (b'{"person_token":"p-1"}', "out_request_no"),
    "number for text": (b'{"person_token":1,"out_request_no":"n-1"}', "person_token"),
    "null for text": (b'{"person_token":null,"out_request_no":"n-1"}', "person_token"),
    "control character": (b'{"person_token":"p\\u0000","out_request_no":"n-1"}', "person_token"),
    "line break": (b'{"person_token":"p-1","out_request_no":"n\\n1"}', "out_request_no"),
    "blank": (b'{"person_token":"p 1","out_request_no":"n-1"}', "person_token"),
    "not ascii": ('{"person_token":"王","out_request_no":"n-1"}'.encode(), "person_token"),
    "empty token": (b'{"person_token":"","out_request_no":"n-1"}', "person_token"),
    "long token": (b'{"person_token":"%b","out_request_no":"n-1"}' % (b"p" * 129), "person_token"),
    "long number": (b'{"person_token":"p-1","out_request_no":"%b"}' % (b"n" * 65), "out_request_no"),
    "slash in number": (b'{"person_token":"p-1","out_request_no":"a/b"}', "out_request_no"),
    "long channel": (
        b'{"person_token":"p-1","out_request_no":"n-1","channel":"%b"}' % (b"c" * 33),
        "channel",
    ),
}


async def test_every_malformed_body_is_refused_and_says_why(service: Service) -> None:
    drop_id = await service.drop(5)
    for name, (body, reason) in BODIES.items():
        detail = problem(await post(service, drop_id, body, bearer(service)), 422, "invalid_request")
        assert any(word in detail for word in reason.split("|")), (name, detail)
    await untouched(service, drop_id)


async def test_the_longest_valid_fields_are_accepted(service: Service) -> None:
    drop_id = await service.drop(5)
    body = msgspec.json.encode(
        {
            "person_token": "~" * 128,
            "out_request_no": "A-_|*@.:" * 8,
            "channel": "c" * 32,
            "region": "370200",
        }
    )
    response = await post(service, drop_id, body, bearer(service))
    assert response.status_code == 201
    awkward = await post(
        service, drop_id, b'{"person_token":"a\\"\\\\b","out_request_no":"n-2"}', bearer(service)
    )
    assert awkward.status_code == 201
    assert awkward.json()["person_token"] == 'a"\\b'


async def test_a_body_over_the_limit_is_refused_also_in_chunks(service: Service) -> None:
    drop_id = await service.drop(5)
    large = GOOD[:-1] + b',"channel":"%b"}' % (b"c" * 5000)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 100):
            yield large[start : start + 100]

    problem(await post(service, drop_id, large, bearer(service)), 413, "body_too_large")
    problem(await post(service, drop_id, chunks(), bearer(service)), 413, "body_too_large")
    await untouched(service, drop_id)


async def test_a_coded_body_is_refused(service: Service) -> None:
    drop_id = await service.drop(5)
    headers = bearer(service) | {"content-encoding": "gzip"}
    problem(await post(service, drop_id, GOOD, headers), 422, "invalid_request")


async def test_no_proof_a_wrong_one_or_a_stale_one_is_401(service: Service) -> None:
    drop_id = await service.drop(5)
    key = service.key
    other = HmacKey("nobody", b"x" * 32)
    altered = signed(key, drop_id)
    altered["signature"] = altered["signature"].replace("sig=:", "sig=:A")
    undigested = {name: value for name, value in signed(key, drop_id).items() if name != "content-digest"}
    wrong_digest = signed(key, drop_id, GOOD.replace(b"p-1", b"p-2"))
    for headers in (
        {},
        {"authorization": "Bearer nothing"},
        {"authorization": "Basic eDp5"},
        altered,
        undigested,
        wrong_digest,
        signed(key, drop_id, age_s=302),
        signed(key, drop_id, age_s=-400),
        signed(other, drop_id),
        signed(key, "another-drop"),
    ):
        response = await post(service, drop_id, GOOD, headers)
        assert problem(response, 401, "unauthenticated")
        assert "www-authenticate" in response.headers
    tampered_query = await post(service, drop_id, GOOD, signed(key, drop_id), query="?a=1")
    problem(tampered_query, 401, "unauthenticated")
    await untouched(service, drop_id)
    assert (await post(service, drop_id, GOOD, signed(key, drop_id, age_s=240))).status_code == 201


async def test_only_partners_with_the_scope_may_grab(service: Service) -> None:
    drop_id = await service.drop(5)
    for who in ("operator", "auditor"):
        problem(await post(service, drop_id, GOOD, bearer(service, who)), 403, "forbidden")
    await untouched(service, drop_id)


@pytest.mark.parametrize("drop_id", ["unknown-drop", "NO-SLUG", "a", "..", "%2e%2e", "x" * 300])
async def test_an_unknown_drop_is_404(service: Service, drop_id: str) -> None:
    response = await post(service, drop_id, GOOD, bearer(service))
    assert response.status_code == 404
    assert msgspec.json.decode(response.content)["code"] in {"unknown_drop", "not_found"}


async def test_another_partners_drop_is_404_as_if_it_were_not(service: Service) -> None:
    drop_id = await service.drop(5, partners=[])
    detail = problem(await post(service, drop_id, GOOD, bearer(service)), 404, "unknown_drop")
    other = problem(await post(service, "unknown-drop", GOOD, bearer(service)), 404, "unknown_drop")
    assert detail == other
    await untouched(service, drop_id)


async def test_a_person_outside_the_region_is_not_eligible(service: Service) -> None:
    drop_id = await service.drop(5)
    outside = GOOD[:-1] + b',"region":"110000"}'
    problem(await post(service, drop_id, outside, bearer(service)), 403, "not_eligible")
    await untouched(service, drop_id)
    district = GOOD[:-1] + b',"region":"370203"}'
    assert (await post(service, drop_id, district, bearer(service))).status_code == 201


async def test_the_request_id_is_echoed_or_made(service: Service) -> None:
    drop_id = await service.drop(5)
    echoed = await post(service, drop_id, GOOD, bearer(service) | {"x-request-id": "abc-1"})
    assert echoed.headers["x-request-id"] == "abc-1"
    made = await post(service, drop_id, GOOD, bearer(service) | {"x-request-id": "a b"})
    assert made.headers["x-request-id"] not in {"a b", "abc-1"}


async def test_a_client_that_goes_away_in_mid_body_harms_nobody(service: Service) -> None:
    drop_id = await service.drop(5)
    host, port = service.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /v1/drops/{drop_id}/grabs HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{{".encode()
    )
    await writer.drain()
    writer.close()
    await untouched(service, drop_id)
    assert (await post(service, drop_id, GOOD, bearer(service))).status_code == 201
