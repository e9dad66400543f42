"""Who does not want to wait costs no message; who does gets one."""

from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from tests.flow.conftest import Service


async def test_a_batch_that_nobody_waits_for_is_confirmed_to_nobody(service: Service) -> None:
    drop_id = await service.drop(5)
    redis = open_redis(service.settings.redis_url)
    async with redis.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.psubscribe(keys.confirm_channel(0, "*").replace("{", "[{]").replace("}", "[}]"))
        await heard.get_message(timeout=1)
        with service.grabs() as client:
            assert (await client.grab(drop_id, "p-1", "n-1", respond_async=True)).status == 202
            assert (await service.settled(drop_id))["issued"] == 1
            assert await heard.get_message(timeout=0.2) is None
            assert (await client.grab(drop_id, "p-2", "n-2")).status == 201
            assert await heard.get_message(timeout=2) is not None
            assert (await client.grab(drop_id, "p-1", "n-1")).status == 200
    await redis.aclose()
