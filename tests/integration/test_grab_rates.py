"""grab_batch.lua for limited partners: exact to the grab, in precedence, and nothing left behind."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from time import perf_counter

import pytest
from redis.asyncio import Redis

from couponsvc.gate.grabbing import OUTCOME_OF, SCRIPT, grab_command
from couponsvc.values import keys, wire
from couponsvc.values.grab import Grab
from couponsvc.values.note import write_note
from couponsvc.values.outcome import Outcome
from couponsvc.values.rate import Rate
from tests.integration.test_grab_batch_lua import SHARD, Stock

PARTNER_NO = 1
SLOW = Rate(per_second=1, burst_count=3)
COMMITTED = write_note("n0", 4, 1_790_000_000_000, "ABCDEFGHJKLMN")


async def decide(
    redis: Redis, numbers: list[str], rates: Mapping[int, Rate], *, epoch: int = 3
) -> tuple[list[Outcome], list[int]]:
    """Grabs `<partner_no>/<person>/<number>` of one batch: their outcomes, and how far each rate is used."""
    places = {partner_no: place for place, partner_no in enumerate(rates, 1)}
    rows = []
    for text in numbers:
        partner, person, number = text.split("/")
        asked = Grab(7, f"{partner}:{person}", number, "", "")
        place = places.get(int(partner))
        rows.append(wire.grab_row(1, asked) if place is None else wire.limited_row(1, asked, place))
    key_names, arguments = grab_command(
        SHARD, wire.encode_origin("o", 1), [(7, epoch)], rows, 1_000_000, rates=rates
    )
    reply = await SCRIPT.run(redis, key_names, arguments)
    ahead = [int(note) for note in reply[len(reply) - len(rates) :]]
    return [OUTCOME_OF[code] for code in reply[0]], ahead


def strangers(count: int, first: int = 0) -> list[str]:
    return [f"{PARTNER_NO}/p{n}/n{n}" for n in range(first, first + count)]


async def test_a_burst_is_decided_and_not_one_grab_more(redis: Redis) -> None:
    await Stock().publish(redis)
    outcomes, (ahead_us,) = await decide(redis, strangers(5), {PARTNER_NO: SLOW})
    assert outcomes == [Outcome.GRANTED] * 3 + [Outcome.RATE_LIMITED] * 2
    assert ahead_us == 3_000_000
    outcomes, _ = await decide(redis, strangers(1, 10), {PARTNER_NO: SLOW})
    assert outcomes == [Outcome.RATE_LIMITED]


async def test_a_refused_grab_takes_no_stock_and_leaves_no_holder(redis: Redis) -> None:
    stock = await Stock().publish(redis)
    await decide(redis, strangers(8), {PARTNER_NO: SLOW})
    assert await stock.figures(redis) == (7, 3, 3)


async def test_who_is_not_limited_costs_no_key_and_no_refusal(redis: Redis) -> None:
    await Stock(quantity=50, available=50).publish(redis)
    outcomes, _ = await decide(redis, [*strangers(5), "2/q1/m1"], {PARTNER_NO: SLOW})
    assert outcomes[-1] is Outcome.GRANTED
    outcomes, _ = await decide(redis, [f"2/q{n}/m{n}" for n in range(2, 40)], {})
    assert set(outcomes) == {Outcome.GRANTED}
    assert await redis.keys("*:rate") == [keys.rate_key(SHARD, PARTNER_NO).encode()]


async def test_a_number_granted_before_is_answered_one_burst_further_and_then_not(redis: Redis) -> None:
    await Stock(holders={"1:1:p0": COMMITTED}).publish(redis)
    rates = {PARTNER_NO: SLOW}
    await decide(redis, strangers(5, 1), rates)
    asked = ["1/p0/n0", "1/p1/n1", "1/p9/n9", "1/p0/n0", "1/p0/n0", "1/p1/n1"]
    outcomes, (ahead_us,) = await decide(redis, asked, rates)
    assert [outcome.name for outcome in outcomes] == [
        "REPEATED",
        "REPEATED_PENDING",
        "RATE_LIMITED",
        "REPEATED",
        "RATE_LIMITED",
        "RATE_LIMITED",
    ]
    assert 5_000_000 < ahead_us <= 6_000_000  # time goes by


@pytest.mark.parametrize(
    "stock",
    [Stock(status=1), Stock(closes_in_ms=-1), Stock(opens_in_ms=60_000), Stock(available=0)],
    ids=["paused", "ended", "not started", "sold out"],
)
async def test_refusals_of_other_kinds_use_the_rate_up_too(redis: Redis, stock: Stock) -> None:
    await stock.publish(redis)
    outcomes, _ = await decide(redis, strangers(4), {PARTNER_NO: SLOW})
    assert Outcome.RATE_LIMITED not in outcomes[:3]
    assert outcomes[3] is Outcome.RATE_LIMITED


async def test_what_is_fenced_uses_nothing(redis: Redis) -> None:
    await Stock().publish(redis)
    outcomes, ahead = await decide(redis, strangers(9), {PARTNER_NO: SLOW}, epoch=2)
    assert (set(outcomes), ahead) == ({Outcome.FENCED}, [0])
    assert await redis.keys("*:rate") == []


async def test_partners_are_limited_apart(redis: Redis) -> None:
    await Stock(quantity=50, available=50).publish(redis)
    asked = [f"{partner}/p{n}/n{n}" for n in range(6) for partner in (1, 2, 3)]
    outcomes, ahead = await decide(redis, asked, {1: SLOW, 2: Rate(1, 5)})
    granted = Counter(
        text[0] for text, outcome in zip(asked, outcomes, strict=True) if outcome is Outcome.GRANTED
    )
    assert granted == {"1": 3, "2": 5, "3": 6}
    assert ahead == [3_000_000, 5_000_000]


async def test_the_rate_comes_free_as_time_goes_by_and_its_key_goes_with_it(redis: Redis) -> None:
    await Stock(quantity=50, available=50).publish(redis)
    rates = {PARTNER_NO: Rate(per_second=50, burst_count=2)}
    await decide(redis, strangers(3), rates)
    assert await redis.pttl(keys.rate_key(SHARD, PARTNER_NO)) in range(20, 41)
    await asyncio.sleep(0.05)
    assert await redis.exists(keys.rate_key(SHARD, PARTNER_NO)) == 0
    outcomes, _ = await decide(redis, strangers(3, 10), rates)
    assert outcomes == [Outcome.GRANTED] * 2 + [Outcome.RATE_LIMITED]


async def test_over_any_time_rate_and_burst_are_reached_and_not_exceeded(redis: Redis) -> None:
    """Two callers that ask without a pause, as two processes would."""
    await Stock(quantity=5_000, available=5_000).publish(redis)
    rate = Rate(per_second=2_000, burst_count=400)  # a burst longer than a pause of the machine
    began = perf_counter()
    decided = 0

    async def ask(first: int) -> None:
        nonlocal decided
        for turn in range(80):
            outcomes, _ = await decide(redis, strangers(10, first + 10 * turn), {PARTNER_NO: rate})
            decided += outcomes.count(Outcome.GRANTED)

    await asyncio.gather(ask(0), ask(1_000))
    allowed = rate.per_second * (perf_counter() - began) + rate.burst_count
    assert decided <= allowed
    assert decided >= min(0.98 * allowed - 20, 1_600)  # a batch of each left out; 1,600 were asked for


@pytest.mark.parametrize("before", [Rate(1, 500), None], ids=["rate was raised", "clock was set back"])
async def test_nobody_is_kept_out_longer_than_his_rate_says(redis: Redis, before: Rate | None) -> None:
    await Stock(quantity=600, available=600).publish(redis)
    if before is None:
        await redis.set(keys.rate_key(SHARD, PARTNER_NO), 9_000_000_000_000_000)
    else:
        await decide(redis, strangers(500), {PARTNER_NO: before})
    rates = {PARTNER_NO: Rate(per_second=100, burst_count=2)}
    outcomes, ahead = await decide(redis, ["1/p900/n900"], rates)
    assert (outcomes, ahead) == ([Outcome.RATE_LIMITED], [40_000])
    await asyncio.sleep(0.05)
    outcomes, _ = await decide(redis, ["1/p900/n900"], rates)
    assert outcomes == [Outcome.GRANTED]


async def test_out_of_memory_a_rate_is_forgiven_and_an_answer_that_stands_is_given(redis: Redis) -> None:
    await Stock(holders={"1:1:p0": COMMITTED}).publish(redis)
    await redis.config_set("maxmemory", 1)
    try:
        outcomes, _ = await decide(redis, ["1/p0/n0"], {PARTNER_NO: SLOW})
    finally:
        await redis.config_set("maxmemory", 0)
    assert outcomes == [Outcome.REPEATED]
