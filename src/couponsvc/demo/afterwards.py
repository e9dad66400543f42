"""After the rush: ask again with every number that was confirmed or never answered, and look up a sample."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from couponsvc.client import Answer, GrabClient, grab_until_answered
from couponsvc.client.answers import SOLD_OUT
from couponsvc.demo.records import Press, Why, press_of

SIDE_BY_SIDE_COUNT: Final = 64
LOOKED_UP_MAX_COUNT: Final = 2_000
"""Look-ups pass through the whole API and Postgres; asking again is answered by the gate."""
REFUSED_MAX_COUNT: Final = 500
"""Refused numbers that are looked up: nothing may be known of them."""

_Target = tuple[str, str, str]


async def ask_again(client: GrabClient, presses: Sequence[Press], seed: int) -> list[Press]:
    """Ask; what comes back is evidence like every other press.

    Raises:
        Unreachable: the service is gone.
    """
    confirmed, open_ends, refused = _targets(presses)
    choose = random.Random(seed).sample  # noqa: S311 - a sample, not a secret
    looked_up = choose(confirmed, min(len(confirmed), LOOKED_UP_MAX_COUNT))
    looked_up += choose(refused, min(len(refused), REFUSED_MAX_COUNT))
    found: list[Press] = []

    async def grab(target: _Target) -> Answer:
        drop_id, number, person = target
        return await grab_until_answered(client, drop_id, person, number)

    async def look_up(target: _Target) -> Answer:
        return await client.look_up(target[0], target[1])

    async def lane(coming: Iterator[tuple[Why, Callable[[_Target], Awaitable[Answer]], _Target]]) -> None:
        for why, ask, target in coming:
            drop_id, number, person = target
            found.append(press_of(drop_id, person, number, why, await ask(target)))

    todo = iter(
        [(Why.ASKED_AGAIN, grab, target) for target in (*confirmed, *open_ends)]
        + [(Why.LOOKED_UP, look_up, target) for target in looked_up]
    )
    try:
        async with asyncio.TaskGroup() as lanes:
            for _ in range(SIDE_BY_SIDE_COUNT):
                lanes.create_task(lane(todo))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return found


def _targets(presses: Sequence[Press]) -> tuple[list[_Target], list[_Target], list[_Target]]:
    """`(drop_id, number, person)` confirmed; ever left without answer; refused as sold out."""
    confirmed: dict[_Target, None] = {}
    open_ends: dict[_Target, None] = {}
    refused: dict[_Target, None] = {}
    for press in presses:
        target = (press.drop_id, press.out_request_no, press.person_token)
        if press.confirmed:
            confirmed[target] = None
        elif press.status in (0, 202):
            open_ends[target] = None
        elif press.outcome == SOLD_OUT and press.why is Why.FIRST:
            refused[target] = None
    return (
        list(confirmed),
        [target for target in open_ends if target not in confirmed],
        [target for target in refused if target not in confirmed and target not in open_ends],
    )
