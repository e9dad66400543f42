"""Carrying out steps: the only place where the blocking and the asynchronous client differ in kind."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar, cast

from couponsvc.client.answers import NO_ANSWER, Answer
from couponsvc.client.connection import Unreachable
from couponsvc.client.grabbing import GrabClient
from couponsvc.client.requests import Request
from couponsvc.client.retrying import PATIENT, Pause, Retries, Steps, grab

T = TypeVar("T")


class _Done(NamedTuple, Generic[T]):
    value: T


def drive(steps: Steps[T], send: Callable[[Request], Answer]) -> T:
    """Carry out steps, blocking.

    Args:
        steps: What to do.
        send: Sends one request; raises `Unreachable` where nothing could be sent.
    """
    step = _advance(steps, None)
    while not isinstance(step, _Done):
        reply: Answer | Unreachable = NO_ANSWER
        if isinstance(step, Pause):
            time.sleep(step.seconds)
        else:
            try:
                reply = send(step)
            except Unreachable as error:
                reply = error
        step = _advance(steps, reply)
    return cast("T", step.value)  # the checker loses T where it narrows


async def drive_async(steps: Steps[T], send: Callable[[Request], Awaitable[Answer]]) -> T:
    """Carry out steps in an event loop; see `drive`."""
    step = _advance(steps, None)
    while not isinstance(step, _Done):
        reply: Answer | Unreachable = NO_ANSWER
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        else:
            try:
                reply = await send(step)
            except Unreachable as error:
                reply = error
        step = _advance(steps, reply)
    return cast("T", step.value)  # the checker loses T where it narrows


async def grab_until_answered(
    client: GrabClient,
    drop_id: str,
    person_token: str,
    out_request_no: str,
    *,
    retries: Retries = PATIENT,
    so_far: Answer = NO_ANSWER,
) -> Answer:
    """Ask with one number until it has an answer, through the fast client; see `retrying.grab`."""
    steps = grab(retries, drop_id, person_token, out_request_no, so_far=so_far)
    return await drive_async(steps, client.exchange)


def _advance(steps: Steps[T], reply: Answer | Unreachable | None) -> Request | Pause | _Done[T]:
    try:
        if reply is None:
            return next(steps)
        if isinstance(reply, Unreachable):
            return steps.throw(reply)
        return steps.send(reply)
    except StopIteration as end:
        return _Done(end.value)
