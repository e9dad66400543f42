"""Examines drops in full: waits until each rests, then compares every number and every note."""

import asyncio
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.gate.definition import DefinitionResult, apply_definition
from couponsvc.reconcile.holders import compare_holders
from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.looking import Look, take_look, take_looks
from couponsvc.reconcile.snapshot import Pool

POLL_MS: Final = 20
"""Between two looks at a drop that is not at rest: a few commits of the drainer."""
LOOKS_COUNT: Final = 3
"""A drop in motion is judged by what this many looks in a row agree on."""


class Examination(NamedTuple):
    """What an examination found."""

    look: Look
    """The last one."""
    findings: list[Finding]
    in_motion: bool
    """Grants kept flowing: counters were judged within bounds, and notes may be pending."""


async def examine(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    shard: int,
    drop_nos: Collection[int] | None,
    give_up_at: float,
    *,
    mend: bool,
) -> list[Examination]:
    """Compare drops on both sides; exactly where one comes to rest before `give_up_at`.

    Args:
        pool: Of the ledger.
        redis: The shard's server.
        shard: Of the drops.
        drop_nos: Which; None: all of the shard.
        give_up_at: By `time.monotonic`: how long to wait for pending grants.
        mend: Nobody can grab meanwhile: apply a definition that is behind, and report at once
            what waiting cannot bring right. Otherwise nothing is written, and everything may
            come right until `give_up_at`.

    Returns:
        One of each drop, in order of `drop_no`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked.
    """
    looks = await take_looks(pool, redis, shard, drop_nos)
    first = {look.drop_no: look for look in looks}
    done: dict[int, Examination] = {}
    while looks:
        expired = monotonic() >= give_up_at
        waiting, resting = [], []
        for look in looks:
            if look.loaded and look.at_rest and not (look.behind or look.ahead):
                resting.append(look)
            elif mend and (examination := await _decide_at_once(redis, look)):
                done[look.drop_no] = examination
            else:
                waiting.append(look)
        for look, findings in await _examine_resting(pool, redis, shard, resting):
            if findings is None:
                waiting.append(look)
            else:
                done[look.drop_no] = Examination(look, findings, in_motion=False)
        if expired:
            for look in waiting:
                done[look.drop_no] = await _judge_restless(pool, redis, first[look.drop_no], look)
            break
        if waiting:
            await asyncio.sleep(POLL_MS / 1000)
        looks = await take_looks(pool, redis, shard, [look.drop_no for look in waiting]) if waiting else []
    return [done[drop_no] for drop_no in sorted(done)]


async def _decide_at_once(redis: Redis, look: Look) -> Examination | None:
    """What a look says of a drop of which nobody can grab; None where waiting may bring it right."""
    if not look.loaded and not look.epoch_moved:
        return Examination(look, look.judge(), in_motion=False)
    applied = await apply_definition(redis, look.ledger.drop) if look.behind else None
    if look.at_rest and applied is DefinitionResult.CONFLICT:
        return Examination(look, [_behind(look)], in_motion=False)
    if not (look.behind or look.ahead) and (decisive := look.judge()):
        return Examination(look, decisive, in_motion=False)  # drainers cannot bring it right
    return None


async def _examine_resting(
    pool: "Pool[asyncpg.Record]", redis: Redis, shard: int, looks: Sequence[Look]
) -> list[tuple[Look, list[Finding] | None]]:
    """What is wrong with drops at rest; with a new look and None for one that moved meanwhile."""
    if not looks:
        return []
    judged = {look.drop_no: look.judge() for look in looks}
    agreeing = [look for look in looks if not judged[look.drop_no]]
    judged |= await _compare(pool, redis, agreeing, at_rest=True)
    again = {look.drop_no: look for look in await take_looks(pool, redis, shard, judged)}
    return [
        (again[look.drop_no], judged[look.drop_no] if again[look.drop_no] == look else None) for look in looks
    ]


async def _judge_restless(pool: "Pool[asyncpg.Record]", redis: Redis, first: Look, look: Look) -> Examination:
    drop = look.ledger.drop
    if not look.loaded or look.ahead:
        return Examination(look, look.judge(), in_motion=False)
    if look.behind:
        return Examination(look, [_behind(look)], in_motion=False)
    if _progress(first) == _progress(look) and look.after.state is not None and look.after.state.pending:
        pending = look.after.state.pending
        detail = f"{pending} grants are pending and none of them was committed; does a drainer run?"
        others = [finding for finding in look.judge() if finding.kind is not Kind.STUCK]
        return Examination(look, [Finding(Kind.STUCK, pending, detail), *others], in_motion=False)
    findings = look.judge()
    for _ in range(LOOKS_COUNT - 1):
        if not findings:
            break
        look = await take_look(pool, redis, drop.shard, drop.drop_no)
        agreed = {finding.kind for finding in findings}
        findings = [finding for finding in look.judge() if finding.kind in agreed]
    if not findings:
        findings = (await _compare(pool, redis, [look], at_rest=False))[drop.drop_no]
    return Examination(look, findings, in_motion=True)


async def _compare(
    pool: "Pool[asyncpg.Record]", redis: Redis, looks: Sequence[Look], *, at_rest: bool
) -> dict[int, list[Finding]]:
    """Findings by `drop_no`, of every drop."""
    drifts = await compare_holders(pool, redis, [look.ledger for look in looks], at_rest=at_rest)
    return {drop_no: drift.findings() for drop_no, drift in drifts.items()}


def _behind(look: Look) -> Finding:
    version = look.before.state.version if look.before.state else 0
    detail = f"Redis holds version {version} of the definition, Postgres {look.ledger.drop.version}"
    return Finding(Kind.DEFINITION, 1, detail)


def _progress(look: Look) -> tuple[int, int, int]:
    state = look.after.state
    return (look.ledger.issued, state.issued, state.pending) if state else (look.ledger.issued, 0, 0)
