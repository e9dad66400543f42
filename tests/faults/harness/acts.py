"""Short schedules, each made so that a correct service passes it and certain planted bugs do not.

In most of them the reconcilers are paused, and stay so until the final state is read: they mend within
seconds what another rule should have kept from breaking, and so would hide it. As long as Redis loses
nothing, nothing needs them.
"""

import asyncio
import time
from typing import Final

from couponsvc import limits
from couponsvc.support.kill_points import KILL, PAUSE
from tests.faults.harness.checker.evidence import CLOCK_TOLERANCE_MS
from tests.faults.harness.proxy import Toxic
from tests.faults.harness.stage import OTHER_PARTNER, RECONCILERS, Act, Stage

DRAINERS: Final = "drain"
TAKE_OVER_S: Final = 1.0
"""`COUPONSVC_TAKE_OVER_IDLE_MS` of the deployment that acts are played on."""
ENVIRONMENT: Final = {"COUPONSVC_TAKE_OVER_IDLE_MS": "1000", "COUPONSVC_CONFIRM_WAIT_MS": "700"}
"""Short waits, because a planted bug makes many wait in vain."""
EARLY_S: Final = 2.5
"""Before the opening: time for a definition and for grabs that are certainly too early."""
RUSH_COUNT: Final = 300
"""Vouchers after which a rush is well under way."""

ACTS: Final[dict[str, Act]] = {}


def act(function: Act) -> Act:
    """Register an act under its name."""
    ACTS[function.__name__] = function
    return function


# --- nothing is broken but the habits of partners ---------------------------------------------------
@act
async def partners_repeat(stage: Stage) -> None:
    """Numbers again, other numbers of the same persons, other persons with the same numbers."""
    one, two = await stage.define("one", 6), await stage.define("two", 8, limit=2)
    stage.pause(RECONCILERS)
    first = stage.fresh(one, 3)
    await stage.ask_all(first)
    await stage.ask_all(first)
    await stage.ask_all([stage.number(one, number.person_token) for number in first])
    await stage.ask(stage.number(one, number=first[0].out_request_no))
    await stage.ask(
        stage.number(one, first[1].person_token, number=first[1].out_request_no, partner=OTHER_PARTNER)
    )
    for number in stage.fresh(two, 2):
        for again in (
            number,
            number,
            stage.number(two, number.person_token),
            stage.number(two, number.person_token),
        ):
            await stage.ask(again)
    for drop_id in (one, two):
        await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def one_batch(stage: Stage) -> None:
    """Numbers of the same persons in one decision, and a batch of many persons."""
    drop_id = await stage.define("one", 12)
    stage.pause(RECONCILERS)
    numbers = stage.fresh(drop_id, 6)
    await stage.ask_all(16 * stage.fresh(drop_id, 1))  # so that drop, key and connections are there
    twice = [stage.number(drop_id, number.person_token) for number in numbers]
    await stage.ask_in_one_batch([*numbers, *numbers[:2], *twice])
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def restocked(stage: Stage) -> None:
    """Sold out for good, then restocked."""
    drop_id = await stage.define("one", 3)
    stage.pause(RECONCILERS)
    await stage.sell_out(drop_id)
    await stage.restock(drop_id, 3)
    await stage.ask_all(stage.fresh(drop_id, 2))
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def too_early(stage: Stage) -> None:
    """Asked before the opening, and again afterwards."""
    opens_at_s = time.monotonic() + EARLY_S
    drop_id = await stage.define("one", 3, opens_in_s=EARLY_S)
    numbers = stage.fresh(drop_id, 3)
    await stage.ask_all(numbers)
    await asyncio.sleep(max(0.0, opens_at_s - time.monotonic()))
    await stage.until_shown(drop_id, "open", "sold_out")
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


# --- drainers -----------------------------------------------------------------------------------
@act
async def drainer_dies_after_reading(stage: Stage) -> None:
    """What it had in its hands is taken over by the other one."""
    drop_id = await stage.define("one", 6)
    stage.pause(RECONCILERS)
    with stage.fault("kill a drainer after its read"):
        async with stage.order("drain.after_read", KILL) as hit:
            await stage.ask_all(stage.fresh(drop_id, 3), wait=False)
            await hit()
        await stage.until_drained()
        await stage.sell_out(drop_id)
        await stage.ask_everything_again()


@act
async def drainer_dies_after_its_report(stage: Stage) -> None:
    """Waiters were told and the entry is off the stream; only the drainer does not know."""
    drop_id = await stage.define("one", 6)
    stage.pause(RECONCILERS)
    with stage.fault("kill a drainer after its report"):
        async with stage.order("drain.after_report", KILL) as hit:
            await stage.ask_all(stage.fresh(drop_id, 3))
            await hit()
        await stage.sell_out(drop_id)
        await stage.ask_everything_again()


@act
async def drainer_is_overtaken(stage: Stage) -> None:
    """One stops between commit and report; the other takes over and reports; the first one goes on."""
    drop_id = await stage.define("one", 8)
    stage.pause(RECONCILERS)
    taken = stage.fresh(drop_id, 2)
    await stage.ask_all(taken)
    with stage.fault("pause a drainer after its commit"):
        async with stage.order("drain.after_commit", PAUSE) as hit:
            mismatched = [stage.number(drop_id, number=number.out_request_no) for number in taken]
            await stage.ask_in_one_batch([*mismatched, *stage.fresh(drop_id, 2)], wait=False)
            await hit()
        await stage.until_drained(TAKE_OVER_S * 4)
        stage.resume(DRAINERS)
        await asyncio.sleep(0.3)  # for what it reports too late
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def drainers_pause(stage: Stage) -> None:
    """Everything is granted, one entry each, and nothing is committed for a while."""
    drop_id = await stage.define("one", 6)
    stage.pause(RECONCILERS)
    with stage.fault("pause every drainer"), stage.paused(DRAINERS):
        for number in stage.fresh(drop_id, 6):
            await stage.ask(number, wait=False)
        await stage.ask(stage.number(drop_id))
        await asyncio.sleep(2 * CLOCK_TOLERANCE_MS / 1000)  # so that nobody takes what follows for earlier
    await stage.until_drained()
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


# --- lines and servers ----------------------------------------------------------------------------
@act
async def reply_is_lost(stage: Stage) -> None:
    """The gate has decided, and its reply comes too late."""
    drop_id = await stage.define("two", 8, limit=2)
    stage.pause(RECONCILERS)
    with stage.fault("hold back the replies of Redis"):
        stage.deployment.proxies.toxic("api-redis", Toxic(hold_reply_s=2 * limits.GATE_TIMEOUT_S))
        asking = asyncio.ensure_future(stage.ask_all(stage.fresh(drop_id, 3)))
        await asyncio.sleep(limits.GATE_TIMEOUT_S + 0.3)
        stage.deployment.proxies.heal("api-redis")
        await asking
        await asyncio.sleep(limits.GATE_TIMEOUT_S)
    await stage.until_shown(drop_id, "open")
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def postgres_crashes(stage: Stage) -> None:
    """The ledger's server ends at once in the middle of a rush, and recovers."""
    drop_id = await stage.define("one", 4_000)
    stage.pause("relay")

    stopped = asyncio.Event()

    async def person() -> None:
        while not stopped.is_set():
            await stage.ask(stage.number(drop_id))

    async def rushes() -> bool:
        return stage.asker.answers["201"] > RUSH_COUNT

    stage.pause(RECONCILERS)
    with stage.fault("stop Postgres hard"):
        rush = asyncio.gather(*(person() for _ in range(32)))
        await stage.until(rushes)
        await stage.deployment.postgres_stop_hard()
        stopped.set()
        await stage.deployment.postgres_start()
        await rush
        stage.resume("relay")
        await stage.until_drained()
        await stage.ask_everything_again()


# --- Redis loses something --------------------------------------------------------------------------
@act
async def wiped(stage: Stage) -> None:
    """Every key is gone while the server stays the blessed one; then it is rebuilt."""
    drop_id = await stage.define("one", 6)
    before = stage.fresh(drop_id, 3)
    await stage.ask_all(before)
    with stage.fault("wipe Redis"):
        with stage.paused(RECONCILERS):
            await stage.deployment.redis_wipe()
            await stage.ask_all([*before, *stage.fresh(drop_id, 2)])
        await stage.until_shown(drop_id, "open", "sold_out")
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def stale_copy(stage: Stage) -> None:
    """Redis comes back as it was before a restock: sold out."""
    drop_id = await stage.define("one", 3)
    await stage.sell_out(drop_id)
    await stage.deployment.redis_copy_data()
    await stage.restock(drop_id, 3)
    with stage.fault("restore an older copy of Redis"):
        with stage.paused(RECONCILERS):
            await stage.deployment.redis_restore_copy()
            for number in stage.fresh(drop_id, 4):
                await stage.ask(number)
                await asyncio.sleep(limits.GATE_RECHECK_MS * 2 / 1000)
        await stage.until_shown(drop_id, "open")
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def pending_over_a_rebuild(stage: Stage) -> None:
    """Grants wait on the stream while their drop is rebuilt without them, and are drained then."""
    drop_id = await stage.define("one", 6)
    with stage.fault("pause every drainer, restart Redis"):
        with stage.paused(DRAINERS):
            await stage.ask_all(stage.fresh(drop_id, 3), wait=False)
            await stage.deployment.redis_restart(keep_data=True)
            await stage.until_epoch(drop_id, 2)
            stage.pause(RECONCILERS)
        await stage.until_drained()
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()


@act
async def two_rebuild(stage: Stage) -> None:
    """One reconciler stops before it publishes; the other publishes a newer epoch; the first goes on."""
    drop_id = await stage.define("one", 6)
    await stage.ask_all(stage.fresh(drop_id, 2))
    with stage.fault("wipe Redis, pause a reconciler before it publishes"):
        async with stage.order("rebuild.before_publish", PAUSE) as hit:
            await stage.deployment.redis_wipe()
            await hit()
        stopped, other = stage.stopped_first(RECONCILERS)
        await stage.end_advisory_locks()
        await stage.until_epoch(drop_id, 3)
        await stage.ask_all(stage.fresh(drop_id, 2))
        stage.deployment.pause(other)
        async with stage.order("rebuild.after_publish", PAUSE):  # which it must not reach
            stage.deployment.resume(stopped)
            await asyncio.sleep(0.5)  # for what it publishes too late
            stage.deployment.pause(stopped)
    await stage.sell_out(drop_id)
    await stage.ask_everything_again()
