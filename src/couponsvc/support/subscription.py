"""Listening on a publish/subscribe channel, through every loss of the connection."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from redis.exceptions import RedisError

from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import RespLine, open_line

log = structlog.get_logger("subscription")

RECONNECT_EVERY_S: Final = 0.1
"""A restarted server is back within tenths of a second, and nothing is lost by asking often."""
PING_EVERY_S: Final = 5.0
"""A cut without a word (a pulled cable, a lost state in a firewall) shows only when one asks."""
REPLY_TIMEOUT_S: Final = 2.0


async def listen(url: str, channel: str, receive: Callable[[bytes], None]) -> None:
    """Hand every message to `receive` until cancelled; messages sent meanwhile are lost.

    A loss is logged once, and once its end. `receive` must not raise.
    """
    lost = False
    while True:
        try:
            line = await open_line(
                make_connection(url), timeout_s=REPLY_TIMEOUT_S, receive=lambda _, data: receive(data)
            )
            try:
                await line.call("SUBSCRIBE", channel)
                if lost:
                    log.info("channel found again", channel=channel)
                lost = False
                await _until_lost(line)
            finally:
                line.close()
        except (RedisError, OSError) as error:
            if not lost:
                log.warning("channel lost", channel=channel, error=type(error).__name__)
            lost = True
            await asyncio.sleep(RECONNECT_EVERY_S)


async def _until_lost(line: RespLine) -> None:
    while True:
        await asyncio.wait([line.lost], timeout=PING_EVERY_S)
        await line.call("PING")  # raises once it is lost
