"""The gate's script against a model of a few lines: same outcomes, same stock, same journal."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from couponsvc.gate.grabbing import OUTCOME_OF, SCRIPT, grab_command
from couponsvc.values import keys, wire
from couponsvc.values.grab import Grab
from couponsvc.values.outcome import Outcome
from tests.integration.test_grab_batch_lua import Stock

_drop_numbers = count(1_000)


@dataclass
class Model:
    """What the gate promises, written the obvious way."""

    available: int
    limit: int
    backlog_room: int
    pending: int = 0
    held: dict[tuple[str, int], str] = field(default_factory=dict)
    journal: list[tuple[str, str, int]] = field(default_factory=list)

    def grab(self, person: str, number: str) -> Outcome:
        if number in (self.held.get((person, ordinal)) for ordinal in range(1, self.limit + 1)):
            return Outcome.REPEATED_PENDING
        free = [o for o in range(1, self.limit + 1) if (person, o) not in self.held]
        if not free:
            return Outcome.PERSON_LIMIT
        if self.available == 0:
            return Outcome.SOLD_OUT_PENDING if self.pending else Outcome.SOLD_OUT
        if len(self.journal) >= self.backlog_room:
            return Outcome.OVERLOADED
        self.available -= 1
        self.pending += 1
        self.held[person, free[0]] = number
        self.journal.append((person, number, free[0]))
        return Outcome.GRANTED


grabs = st.tuples(st.sampled_from("abcde"), st.sampled_from(["1", "2", "3", "12"]))


@given(
    quantity=st.integers(1, 8),
    limit=st.integers(1, 3),
    backlog_room=st.integers(1, 9),
    batches=st.lists(st.lists(grabs, min_size=1, max_size=12), max_size=6),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_script_and_model_agree(
    redis: Redis, quantity: int, limit: int, backlog_room: int, batches: list[list[tuple[str, str]]]
) -> None:
    await redis.delete(keys.grants_key(0), keys.shard_key(0))
    drop_no = next(_drop_numbers)
    stock = Stock(drop_no=drop_no, epoch=1, quantity=quantity, available=quantity, limit=limit)
    await stock.publish(redis)
    model = Model(quantity, limit, backlog_room)
    for batch in batches:
        indexed = [wire.grab_row(1, Grab(drop_no, f"1:{person}", number, "", "")) for person, number in batch]
        key_names, arguments = grab_command(
            0, wire.encode_origin("o", 1), [(drop_no, 1)], indexed, backlog_room
        )
        reply = await SCRIPT.run(redis, key_names, arguments)
        assert [OUTCOME_OF[code] for code in reply[0]] == [model.grab(p, n) for p, n in batch]
    assert await stock.figures(redis) == (model.available, model.pending, len(model.held))
    found: Any = await redis.xrange(keys.grants_key(0))
    journal = [
        (grant.holder[2:], grant.out_request_no, grant.ordinal)
        for entry_id, fields in found
        for grant in wire.decode_entry(entry_id, fields).grants
    ]
    assert journal == model.journal
