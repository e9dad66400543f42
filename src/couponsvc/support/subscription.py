"""Listening on a publish/subscribe channel, through every loss of the connection."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = structlog.get_logger("subscription")

RECONNECT_EVERY_S: Final = 0.1
"""A restarted server is back within tenths of a second, and nothing is lost by asking often."""


async def listen(redis: Redis, channel: str, receive: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand every message to `receive` until cancelled; messages sent meanwhile are lost.

    `redis` is a client without read timeout. A loss is logged once, and once its end.
    """
    lost = False
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe(channel)
                if lost:
                    log.info("channel found again", channel=channel)
                lost = False
                async for message in subscription.listen():
                    await receive(message["data"])
        except (RedisError, OSError) as error:
            if not lost:
                log.warning("channel lost", channel=channel, error=type(error).__name__)
            lost = True
            await asyncio.sleep(RECONNECT_EVERY_S)
