"""Windows open and close by the clock of Redis alone."""

import asyncio
import time
from datetime import datetime

import pytest

from couponsvc.support.redis_client import open_redis
from tests.flow.conftest import Service


async def test_a_drop_opens_by_redis_time_and_says_when_before(service: Service) -> None:
    drop_id = await service.drop(5, opens_in_s=1.5)
    with service.grabs() as client:
        early = await client.grab(drop_id, "p-1", "n-1")
        assert (early.status, early.outcome, early.refusal.retryable) == (409, "not_started", True)
        definition = await service.operate("GET", f"/v1/drops/{drop_id}")
        assert early.refusal.opens_at == definition["opens_at"]
        redis = open_redis(service.settings.redis_url)
        opened_before_redis_said_so = False
        while True:
            answer = await client.grab(drop_id, "p-1", "n-1")
            seconds, microseconds = await redis.time()
            if answer.status == 201:
                opens_ms = _ms(definition["opens_at"])
                opened_before_redis_said_so = seconds * 1000 + microseconds / 1000 < opens_ms
                break
        await redis.aclose()
    assert not opened_before_redis_said_so


@pytest.mark.parametrize("skew_s", [-7200, 7200])
async def test_an_api_process_with_a_wrong_clock_opens_nothing_early_and_nothing_late(
    service: Service, skew_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduled = await service.drop(5, opens_in_s=3600, closes_in_s=7200)
    open_now = await service.drop(5, opens_in_s=-60, closes_in_s=3600)
    over = await service.drop(5, opens_in_s=-60, closes_in_s=1)
    await asyncio.sleep(1)
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + skew_s)
    assert await service.grab_with_token(scheduled, "p-1", "n-1") == "not_started"
    assert await service.grab_with_token(open_now, "p-1", "n-2") == "issued"
    assert await service.grab_with_token(over, "p-1", "n-3") == "ended"


async def test_after_the_window_a_holder_still_gets_the_voucher_and_others_are_told(
    service: Service,
) -> None:
    drop_id = await service.drop(5)
    with service.grabs() as client:
        first = await client.grab(drop_id, "p-1", "n-1")
        await service.operate("POST", f"/v1/drops/{drop_id}/close")
        again = await client.grab(drop_id, "p-1", "n-1")
        assert (again.status, again.body) == (200, first.body)
        late = await client.grab(drop_id, "p-2", "n-2")
        assert (late.outcome, late.refusal.retryable) == ("ended", False)


async def test_a_paused_drop_refuses_and_a_resumed_one_goes_on(service: Service) -> None:
    drop_id = await service.drop(5)
    with service.grabs() as client:
        await service.operate("POST", f"/v1/drops/{drop_id}/pause")
        refused = await client.grab(drop_id, "p-1", "n-1")
        assert (refused.outcome, refused.refusal.retryable) == ("paused", True)
        await service.operate("POST", f"/v1/drops/{drop_id}/resume")
        assert (await client.grab(drop_id, "p-1", "n-1")).status == 201


async def test_restocked_units_are_handed_out_exactly(service: Service) -> None:
    drop_id = await service.drop(1)
    with service.grabs() as client:
        assert (await client.grab(drop_id, "p-1", "n-1")).status == 201
        assert (await client.grab(drop_id, "p-2", "n-2")).outcome == "sold_out"
        await service.operate("POST", f"/v1/drops/{drop_id}/restock", {"current_quantity": 1, "add": 2})
        assert (await client.grab(drop_id, "p-2", "n-2")).status == 201
        assert (await client.grab(drop_id, "p-3", "n-3")).status == 201
        assert (await client.grab(drop_id, "p-4", "n-4")).outcome == "sold_out"
    await service.settled(drop_id)
    await service.no_drift()


def _ms(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() * 1000
