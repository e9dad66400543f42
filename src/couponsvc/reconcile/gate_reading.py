"""Asks Redis what it holds of a shard's drops: in a few scripts, however many drops there are.

Atomic is what one script reads, hence each drop together with the stream; not all drops with each
other. Nothing that is judged spans two drops, and between two scripts grabs may pass.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from couponsvc import limits
from couponsvc.support.bulk import BulkConnection
from couponsvc.support.lua import LuaScript
from couponsvc.values import keys

Question = tuple[str | int, ...]
"""One call of the script, from the number of its keys on. It may be asked again and again."""

SCRIPT: Final = LuaScript(
    "couponsvc.reconcile", "read_drops", keys=["shard", "grants", "drops"], arguments=["epoch_fields"]
)


class Answer(NamedTuple):
    """What one script read, at one moment."""

    entry_count: int
    """On the stream of the shard."""
    backlog: int
    """Grants that are counted as not acknowledged."""
    texts: list[bytes]
    """One of each drop, in order: see RETURNS of `read_drops.lua`."""


def questions_about(shard: int, epochs: Sequence[tuple[int, int]]) -> list[Question]:
    """What to ask to hear of each `(drop_no, epoch)`, in order; at least one question."""
    step = limits.BATCH_DROPS_MAX_COUNT
    return [_question(shard, epochs[start : start + step]) for start in range(0, max(len(epochs), 1), step)]


def _question(shard: int, epochs: Sequence[tuple[int, int]]) -> Question:
    key_names = [keys.shard_key(shard), keys.grants_key(shard)]
    for drop_no, epoch in epochs:
        key_names += keys.state_key(shard, drop_no, epoch), keys.holders_key(shard, drop_no, epoch)
    return (len(key_names), *key_names, *(keys.epoch_field(drop_no) for drop_no, _ in epochs))


async def ask(redis: Redis, questions: Sequence[Question]) -> list[Answer]:
    """Answers in order; one script at a time, so that grabs need not wait for all of them.

    Raises:
        redis.exceptions.RedisError: Redis cannot be asked.
    """
    answers = []
    async with BulkConnection(redis) as bulk:
        for question in questions:
            await bulk.send("EVALSHA", SCRIPT.digest, *question)
            try:
                entry_count, backlog, *texts = await bulk.reply()
            except NoScriptError:
                await bulk.send("EVAL", SCRIPT.source, *question)
                entry_count, backlog, *texts = await bulk.reply()
            answers.append(Answer(entry_count, backlog, texts))
    return answers
