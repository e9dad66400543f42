"""Looking up what stands, and who may see it."""

import asyncio
import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.ledger.codes import CODE_CHARS
from couponsvc.settings import Settings
from tests.integration.house import House, code_of


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def test_a_grab_is_unknown_then_pending_then_the_voucher(house: House) -> None:
    await house.drop()
    path = "/v1/drops/wed/grabs/n-p1"
    unknown = await house.call("GET", path, by="bank-a")
    assert code_of(unknown) == "unknown_request"
    assert unknown.json()["retryable"] is True
    assert unknown.json()["out_request_no"] == "n-p1"
    await house.grant("wed", "p1")
    pending = await house.call("GET", path, by="bank-a")
    assert (pending.status_code, pending.headers["location"]) == (202, path)
    assert pending.json() == {"status": "pending", "drop_id": "wed", "out_request_no": "n-p1"}
    await house.drain()
    voucher = await house.call("GET", path, by="bank-a")
    assert voucher.status_code == 200
    assert voucher.json()["person_token"] == "p1"
    assert len(voucher.json()["code"]) == CODE_CHARS


async def test_every_way_to_a_voucher_shows_the_same_bytes(house: House) -> None:
    await house.drop()
    await house.issue("wed", "p1")
    by_number = (await house.call("GET", "/v1/drops/wed/grabs/n-p1", by="bank-a")).content
    name = json.loads(by_number)["voucher_id"]
    by_name = (await house.call("GET", f"/v1/vouchers/{name}", by="bank-a")).content
    by_person = (await house.call("GET", "/v1/vouchers?drop_id=wed&person_token=p1", by="bank-a")).content
    exported = (await house.call("GET", "/v1/drops/wed/ledger", by="auditor")).content
    assert by_name == by_number
    assert by_person == b'{"vouchers":[' + by_number + b"]}"
    assert exported == by_number + b"\n"


async def test_partners_see_only_what_is_theirs(house: House) -> None:
    await house.drop()
    await house.issue("wed", "p1")
    name = (await house.call("GET", "/v1/drops/wed/grabs/n-p1", by="bank-a")).json()["voucher_id"]
    seen = {
        path: code_of(await house.call("GET", path, by="bank-b"))
        for path in (
            "/v1/drops/wed",
            "/v1/drops/wed/grabs/n-p1",
            f"/v1/vouchers/{name}",
            "/v1/vouchers?drop_id=wed&person_token=p1",
            "/v1/programs/test",
            "/v1/programs/test/templates/dining-20",
        )
    }
    assert set(seen.values()) == {"unknown_drop", "unknown_voucher", "unknown_program"}
    assert (await house.call("GET", "/v1/drops", by="bank-b")).json() == {"drops": [], "next": None}
    assert (await house.call("GET", "/v1/programs", by="bank-b")).json() == {"programs": [], "next": None}


async def test_in_a_shared_drop_numbers_and_pseudonyms_stay_apart(house: House) -> None:
    await house.drop(partners=["bank-a", "bank-b"])
    await house.issue("wed", "p1", partner="bank-a")
    assert code_of(await house.call("GET", "/v1/drops/wed/grabs/n-p1", by="bank-b")) == "unknown_request"
    found = await house.call("GET", "/v1/vouchers?drop_id=wed&person_token=p1", by="bank-b")
    assert found.json() == {"vouchers": []}
    assert (await house.call("GET", "/v1/drops/wed", by="bank-b")).json()["partners"] == ["bank-b"]


async def test_an_operator_is_asked_whose_number_it_is_where_two_partners_used_it(house: House) -> None:
    await house.drop(partners=["bank-a", "bank-b"])
    await house.issue("wed", "p1", partner="bank-a")
    path = "/v1/drops/wed/grabs/n-p1"
    alone = await house.call("GET", path)
    await house.issue("wed", "p1", partner="bank-b")
    assert code_of(await house.call("GET", path)) == "conflict"
    assert (await house.call("GET", f"{path}?partner_id=bank-a")).content == alone.content
    both = await house.call("GET", "/v1/vouchers?drop_id=wed&person_token=p1")
    assert len(both.json()["vouchers"]) == 2


async def test_the_ledger_is_exported_in_order_and_page_by_page(house: House) -> None:
    people = [f"p{n}" for n in range(25)]
    await house.drop(quantity=25)
    await house.issue("wed", *people)
    seqs: list[int] = []
    while True:
        after = seqs[-1] if seqs else 0
        page = await house.call("GET", f"/v1/drops/wed/ledger?after_seq={after}&limit=10", by="auditor")
        assert page.headers["content-type"] == "application/x-ndjson"
        lines = page.text.splitlines()
        seqs += [json.loads(line)["seq"] for line in lines]
        if len(lines) < 10:
            break
    assert seqs == list(range(1, 26))


async def test_a_long_page_of_the_ledger_is_whole(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couponsvc.api.routes_vouchers.LEDGER_CHUNK_COUNT", 7)
    await house.drop(quantity=25)
    await house.issue("wed", *[f"p{n}" for n in range(25)])
    for limit in (6, 7, 8, 14, 25, 100):
        page = await house.call("GET", f"/v1/drops/wed/ledger?limit={limit}", by="auditor")
        assert len(page.text.splitlines()) == min(limit, 25)


async def test_scopes_decide_who_may_do_what(house: House) -> None:
    await house.drop()
    expected = {
        ("PUT", "/v1/drops/wed"): {"auditor", "bank-a"},
        ("PUT", "/v1/programs/test"): {"auditor", "bank-a"},
        ("POST", "/v1/drops/wed/pause"): {"auditor", "bank-a"},
        ("POST", "/v1/drops/wed/restock"): {"auditor", "bank-a"},
        ("GET", "/v1/drops/wed/ledger"): {"bank-a"},
        ("GET", "/v1/drops/wed"): set(),
    }
    for (method, path), refused in expected.items():
        for by in ("operator", "auditor", "bank-a"):
            answer = await house.call(method, path, {} if method == "PUT" else None, by=by)
            forbidden = answer.status_code == 403
            assert forbidden == (by in refused), (method, path, by, answer.text)


async def test_without_a_credential_nothing_below_v1_is_told(house: House) -> None:
    await house.drop()
    for path in ("/v1/drops/wed", "/v1/drops/none", "/v1/no-such-thing", "/v1/drops"):
        answer = await house.call("GET", path, by=None)
        assert code_of(answer) == "unauthenticated"
        assert "www-authenticate" in answer.headers
    wrong = await house.call("GET", "/v1/drops", by=None, headers={"authorization": "Bearer wrong"})
    assert code_of(wrong) == "unauthenticated"


async def test_vouchers_that_are_not_are_unknown(house: House) -> None:
    for name in ("vch_1_1", "vch_99999999999_1", "vch_1_0", "voucher", "vch_1_1_1", "vch__"):
        assert code_of(await house.call("GET", f"/v1/vouchers/{name}")) == "unknown_voucher"


async def test_a_commit_between_the_two_looks_is_not_missed(house: House) -> None:
    await house.drop(quantity=30)
    await house.grant("wed", *[f"p{n}" for n in range(30)])

    async def ask(n: int) -> int:
        await asyncio.sleep(0.001 * n)
        return (await house.call("GET", f"/v1/drops/wed/grabs/n-p{n}", by="bank-a")).status_code

    draining = asyncio.create_task(house.drain())
    answers = await asyncio.gather(*(ask(n) for n in range(30)))
    await draining
    assert set(answers) <= {200, 202}
