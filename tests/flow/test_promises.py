"""The four promises, from outside: real servers, real HTTP, signed requests."""

import asyncio
from collections import Counter

import msgspec
import pytest

from couponsvc.client import PATIENT, Answer, GrabClient, Voucher, grab_until_answered
from couponsvc.client.answers import NO_ANSWER
from tests.flow.conftest import Service


async def grab_all(client: GrabClient, drop_id: str, asked: list[tuple[str, str]]) -> list[Answer]:
    """`(person, number)` all at once."""
    return list(await asyncio.gather(*(client.grab(drop_id, p, n) for p, n in asked)))


def outcomes(answers: list[Answer]) -> Counter[str]:
    return Counter(answer.outcome for answer in answers)


async def test_a_grab_is_answered_with_the_committed_voucher(service: Service) -> None:
    drop_id = await service.drop(10)
    with service.grabs() as client:
        answer = await client.grab(drop_id, "p-1", "n-1")
    assert answer.status == 201
    voucher = answer.voucher
    assert (voucher.drop_id, voucher.seq, voucher.person_token) == (drop_id, 1, "p-1")
    assert (voucher.face_value_fen, voucher.min_spend_fen) == (2000, 6000)
    stands = await service.operate("GET", f"/v1/vouchers/{voucher.voucher_id}")
    assert stands["code"] == voucher.code
    await service.no_drift()


@pytest.mark.parametrize("stock", [1])
async def test_64_at_once_on_a_stock_of_one_issue_exactly_one_fifty_times(
    service: Service, stock: int
) -> None:
    with service.grabs() as client:
        for drop_id in await asyncio.gather(*(service.drop(stock) for _ in range(50))):
            answers = await grab_all(client, drop_id, [(f"p-{i}", f"{drop_id}-{i}") for i in range(64)])
            assert outcomes(answers) == {"issued": 1, "sold_out": 63}
        assert (await service.settled(drop_id))["issued"] == 1
    await service.no_drift()


async def test_150_on_100_issue_exactly_100(service: Service) -> None:
    drop_id = await service.drop(100)
    with service.grabs(150) as client:
        answers = await grab_all(client, drop_id, [(f"p-{i}", f"n-{i}") for i in range(150)])
    assert outcomes(answers) == {"issued": 100, "sold_out": 50}
    assert sorted(a.voucher.seq for a in answers if a.confirmed) == list(range(1, 101))
    assert len({a.voucher.code for a in answers if a.confirmed}) == 100
    figures = await service.settled(drop_id)
    assert (figures["available"], figures["pending"], figures["issued"]) == (0, 0, 100)
    assert figures["state"] == "sold_out"
    await service.no_drift()


async def test_43_clients_that_lose_answers_and_retry_sell_exactly_50(service: Service) -> None:
    drop_id = await service.drop(50)
    persons = [(f"p-{i}", f"n-{i}") for i in range(86)]
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    for person in persons:
        queue.put_nowait(person)
    answers: dict[str, Answer] = {}

    async def client_loop(client: GrabClient, place: int) -> None:
        while not queue.empty():
            person, number = queue.get_nowait()
            if (place + len(answers)) % 2:
                await client.abandon_grab(drop_id, person, number)
            answers[number] = await grab_until_answered(
                client, drop_id, person, number, retries=PATIENT, so_far=NO_ANSWER
            )

    with service.grabs() as client:
        await asyncio.gather(*(client_loop(client, place) for place in range(43)))
        assert outcomes(list(answers.values()))["sold_out"] == 36
        confirmed = [a for a in answers.values() if a.confirmed]
        assert len(confirmed) == 50
        assert {a.voucher.seq for a in confirmed} == set(range(1, 51))
        assert (await service.settled(drop_id))["issued"] == 50
        for number, answer in answers.items():
            if answer.confirmed:
                again = await client.grab(drop_id, answer.voucher.person_token, number)
                assert (again.status, again.body) == (200, answer.body)
    await service.no_drift()


async def test_one_person_with_50_numbers_gets_one_voucher_and_49_refusals_that_name_it(
    service: Service,
) -> None:
    drop_id = await service.drop(100)
    with service.grabs() as client:
        answers = await grab_all(client, drop_id, [("p-1", f"n-{i}") for i in range(50)])
    assert outcomes(answers) == {"issued": 1, "person_limit": 49}
    (issued,) = [a for a in answers if a.status == 201]
    for refused in (a for a in answers if a.status == 409):
        assert bytes(refused.refusal.voucher) == issued.body
        assert not refused.refusal.retryable


async def test_one_number_50_times_is_one_201_and_byte_identical_200s(service: Service) -> None:
    drop_id = await service.drop(100)
    with service.grabs() as client:
        answers = await grab_all(client, drop_id, [("p-1", "n-1")] * 50)
        assert outcomes(answers) == {"issued": 1, "repeated": 49}
        assert len({a.body for a in answers}) == 1
        later = await client.grab(drop_id, "p-1", "n-1")
        looked_up = await client.look_up(drop_id, "n-1")
    assert (later.status, later.body) == (200, answers[0].body)
    assert (looked_up.status, looked_up.body) == (200, answers[0].body)


async def test_a_person_gets_as_many_as_the_limit_allows_and_not_one_more(service: Service) -> None:
    drop_id = await service.drop(100, limit=3)
    with service.grabs() as client:
        answers = await grab_all(client, drop_id, [("p-1", f"n-{i}") for i in range(20)])
        assert outcomes(answers) == {"issued": 3, "person_limit": 17}
        for number in [a.voucher.out_request_no for a in answers if a.confirmed]:
            again = await client.grab(drop_id, "p-1", number)
            assert again.status == 200
    await service.no_drift()


async def test_a_number_used_for_another_person_is_a_mismatch_and_its_unit_comes_back(
    service: Service,
) -> None:
    drop_id = await service.drop(2)
    with service.grabs() as client:
        first = await client.grab(drop_id, "p-1", "n-1")
        assert first.status == 201
        other = await client.grab(drop_id, "p-2", "n-1")
        assert (other.status, other.outcome) == (409, "request_mismatch")
        await service.settled(drop_id)
        assert (await client.grab(drop_id, "p-2", "n-2")).status == 201
        assert (await client.grab(drop_id, "p-3", "n-3")).outcome == "sold_out"
    await service.no_drift()


async def test_a_number_used_for_another_drop_is_a_mismatch(service: Service) -> None:
    first, second = await service.drop(2), await service.drop(2)
    with service.grabs() as client:
        assert (await client.grab(first, "p-1", "n-1")).status == 201
        assert (await client.grab(second, "p-1", "n-1")).outcome == "request_mismatch"
        assert (await client.look_up(second, "n-1")).status == 404
    await service.settled(second)
    await service.no_drift()


async def test_respond_async_is_told_pending_and_then_finds_its_voucher(service: Service) -> None:
    drop_id = await service.drop(5)
    with service.grabs() as client:
        answer = await client.grab(drop_id, "p-1", "n|1", respond_async=True)
        assert answer.status == 202
        assert msgspec.json.decode(answer.body) == {
            "status": "pending",
            "drop_id": drop_id,
            "out_request_no": "n|1",
        }
        found = await grab_until_answered(client, drop_id, "p-1", "n|1", so_far=answer)
    assert found.status == 200
    assert found.voucher.out_request_no == "n|1"


async def test_sold_out_is_final_only_when_the_whole_quantity_is_issued(service: Service) -> None:
    drop_id = await service.drop(1)
    with service.grabs() as client:
        await client.grab(drop_id, "p-1", "n-1")
        await service.settled(drop_id)
        refused = await client.grab(drop_id, "p-2", "n-2")
        assert (refused.outcome, refused.refusal.retryable) == ("sold_out", False)
        await service.stop("drain")
        other = await service.drop(1)
        assert (await client.grab(other, "p-1", "n-3", respond_async=True)).status == 202
        refused = await client.grab(other, "p-2", "n-4")
        assert (refused.outcome, refused.refusal.retryable) == ("sold_out", True)
        await service.start("drain")
        assert (await service.settled(other))["issued"] == 1


async def test_two_drainers_share_one_stream(service: Service) -> None:
    await service.start("drain2")
    drop_id = await service.drop(400)
    with service.grabs(128) as client:
        answers = await grab_all(client, drop_id, [(f"p-{i}", f"n-{i}") for i in range(500)])
    assert outcomes(answers) == {"issued": 400, "sold_out": 100}
    assert sorted(a.voucher.seq for a in answers if a.confirmed) == list(range(1, 401))
    await service.no_drift()


async def test_the_receipt_is_a_voucher_of_the_contract(service: Service) -> None:
    drop_id = await service.drop(1)
    with service.grabs() as client:
        answer = await client.grab(drop_id, "p-1", "n-1")
    members = list(msgspec.json.decode(answer.body))
    assert members == list(Voucher.__struct_fields__)
