"""Which events the stream holds already, asked before what may be a repeat.

JetStream forgets ids after its window; a repeat may come much later: acknowledgements were lost and the
network was away for an hour, or a relay died and another took over. So the end of the stream is read.

That the last message is event 256 proves nothing of event 255: up to a window of events is on its way at
once, each is confirmed by itself, and any may have failed. So only what was itself seen is skipped: the
same subject, the same id, the same bytes. What was not seen is published; a repeat harms nobody, a gap does.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from nats.js import JetStreamContext
from nats.js.api import Header, RawStreamMsg
from nats.js.errors import NotFoundError

from couponsvc.outbox.sinks.nats_stream import EVERY_SUBJECT, STREAM, subject_of
from couponsvc.values.event import Event, parse_event_id

LOOK_AT_ONCE_COUNT: Final = 64
"""Messages asked for at once; 11 MB where all are full."""
LOOK_BACK_COUNT: Final = 1_024
"""Messages looked through at most: the unconfirmed turn (256) with what was stored between and after it, by
another relay or, in an operator's stream, by others. Beyond, an event is stored twice."""


async def held_of(stream: JetStreamContext, events: Sequence[Event]) -> frozenset[str]:
    """Ids of those of `events` (by number, ascending) that are among the last messages of the stream.

    Creates no consumer: in a stream that drops what its consumers have read, one more would change that.

    Raises:
        ExceptionGroup, nats.js.errors.APIError, nats.errors.Error, TimeoutError: as the server or the
            network said; of one question or several.
    """
    wanted = {event.event_id: event for event in events}
    held: set[str] = set()
    last = await _find(stream, None)
    newest = (last.seq or 0) if last else 0
    oldest = max(0, newest - LOOK_BACK_COUNT)
    for high in range(newest, oldest, -LOOK_AT_ONCE_COUNT):
        numbers = []
        for message in await _read(stream, range(max(oldest, high - LOOK_AT_ONCE_COUNT) + 1, high + 1)):
            name = (message.headers or {}).get(Header.MSG_ID.value, "")
            numbers.append(parse_event_id(name) or 0)
            if name in wanted and _is(message, wanted[name]):
                held.add(name)
        if len(held) == len(wanted) or 0 < max(numbers, default=0) < events[0].event_no:
            break
    return frozenset(held)


async def _read(stream: JetStreamContext, seqs: range) -> list[RawStreamMsg]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_find(stream, seq)) for seq in seqs]
    return [message for task in tasks if (message := task.result())]


async def _find(stream: JetStreamContext, seq: int | None) -> RawStreamMsg | None:
    """The message at `seq`, or the last one of ours; None where there is none (any more)."""
    try:
        return await (stream.get_msg(STREAM, seq) if seq else stream.get_last_msg(STREAM, EVERY_SUBJECT))
    except NotFoundError:
        return None


def _is(message: RawStreamMsg, event: Event) -> bool:
    """Whether it is this event, not one of the same number from a database that began anew."""
    return message.data == event.body and message.subject == subject_of(event)
