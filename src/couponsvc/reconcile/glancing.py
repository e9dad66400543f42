"""Finds which drops need a look: a glance at all of them costs little more than one of them.

A drop is settled once a look found it at rest and agreeing in everything. Its judgement follows
from what Redis and Postgres said of it and from nothing else, so while both say the same again the
judgement is the same, and it need not be made again. Still each drop has its turn now and then:
a glance sees whatever moves a mark, and a definition might be changed by hand.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.reconcile.gate_reading import Answer, Question, ask, questions_about
from couponsvc.reconcile.looking import Look
from couponsvc.reconcile.snapshot import (
    GateSide,
    Pool,
    StreamSide,
    gate_side,
    read_gate,
    read_ledger,
    read_marks,
    stream_side,
)

TURNS_COUNT: Final = 60
"""Looks after which each drop was looked at, settled or not: a minute, or less while drops change."""


class Glance(NamedTuple):
    """What was seen of a shard."""

    drop_count: int
    looks: list[Look]
    """Of the drops that are not settled, that moved, or whose turn it was; in order of `drop_no`."""
    stream: StreamSide


class Glancer:
    """Remembers what settled drops of one shard looked like."""

    def __init__(self, pool: "Pool[asyncpg.Record]", redis: Redis, shard: int) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._shard: Final = shard
        self._settled: Final[dict[int, tuple[int, int, int, bytes]]] = {}
        """Epoch, version, issued, and the text of Redis, by `drop_no`."""
        self._epochs: list[tuple[int, int]] = []
        self._questions: list[Question] = questions_about(shard, [])
        self._turn = 0

    async def glance(self) -> Glance:
        """Look at the drops that need it. They are settled no more, until `settle` says so.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
                two cannot be asked.
        """
        marks = await read_marks(self._pool, self._shard)
        epochs = list(zip(marks.drop_nos, marks.epochs, strict=True))
        if epochs != self._epochs:
            self._epochs, self._questions = epochs, questions_about(self._shard, epochs)
        answers = await ask(self._redis, self._questions)
        texts = [text for answer in answers for text in answer.texts]
        seen = dict(
            zip(
                marks.drop_nos,
                zip(marks.epochs, marks.versions, marks.issued_counts, texts, strict=True),
                strict=True,
            )
        )
        self._turn = (self._turn + 1) % TURNS_COUNT
        moved = [drop_no for drop_no, now in seen.items() if self._settled.get(drop_no) != now]
        due = [drop_no for drop_no in self._settled if drop_no % TURNS_COUNT == self._turn]
        before = self._before(answers, {*moved, *due}) if moved or due else {}
        return Glance(len(seen), await self._look_at(before), stream_side(answers))

    def settle(self, look: Look) -> None:
        """Look at this drop again only when something of it has moved, or at its turn."""
        drop = look.ledger.drop
        self._settled[drop.drop_no] = (drop.epoch, drop.version, look.ledger.issued, look.after.text)

    def _before(self, answers: Sequence[Answer], wanted: set[int]) -> dict[int, tuple[int, GateSide]]:
        """What the glance heard of some drops, each with the epoch that it asked about."""
        texts = [(text, answer.entry_count) for answer in answers for text in answer.texts]
        return {
            drop_no: (epoch, gate_side(*heard))
            for (drop_no, epoch), heard in zip(self._epochs, texts, strict=True)
            if drop_no in wanted
        }

    async def _look_at(self, before: Mapping[int, tuple[int, GateSide]]) -> list[Look]:
        """The glance was the read before; now Postgres, then Redis again."""
        if not before:
            return []
        for drop_no in before:
            self._settled.pop(drop_no, None)
        ledger = await read_ledger(self._pool, self._shard, before)
        after = await read_gate(self._redis, [side.drop for side in ledger])
        looks = []
        for side, gate in zip(ledger, after, strict=True):
            epoch, heard = before[side.drop.drop_no]
            looks.append(Look(heard, side, gate, side.drop.epoch != epoch))
        return looks
