"""A full service says so at once, loses nothing, and keeps what it promised."""

import asyncio

import pytest

from couponsvc import limits
from tests.flow.conftest import Service

WAITING_MAX_COUNT = 10


async def test_what_is_too_much_is_refused_at_once_and_nothing_of_it_is_lost(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_id = await service.drop(30)
    persons = [f"p-{number}" for number in range(30)]
    await service.stop("drain")
    monkeypatch.setattr(limits, "WAITING_MAX_COUNT", WAITING_MAX_COUNT)
    with service.grabs() as client:
        first = [asyncio.create_task(client.grab(drop_id, p, f"n-{p}")) for p in persons[:WAITING_MAX_COUNT]]
        await asyncio.sleep(0.5)
        refused = await asyncio.gather(
            *(client.grab(drop_id, p, f"n-{p}") for p in persons[WAITING_MAX_COUNT:])
        )
        assert {answer.status for answer in refused} == {503}
        assert {answer.outcome for answer in refused} == {"overloaded"}
        assert not any(task.done() for task in first), "the refusals came before the answers that wait"
        await service.start("drain")
        assert {(await task).status for task in first} <= {201, 202}
        monkeypatch.undo()
        again = await asyncio.gather(*(client.grab(drop_id, p, f"n-{p}") for p in persons))
        assert {answer.status for answer in again} <= {200, 201}
    assert (await service.settled(drop_id))["issued"] == 30
    await service.no_drift()
