"""Examines one drop in full: waits until it rests, then compares every number and every note."""

import asyncio
from time import monotonic
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.gate.definition import DefinitionResult, apply_definition
from couponsvc.reconcile.holders import compare_holders
from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.looking import Look, take_look
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
    pool: "Pool[asyncpg.Record]", redis: Redis, shard: int, drop_no: int, give_up_at: float, *, mend: bool
) -> Examination:
    """Compare a drop on both sides; exactly where it comes to rest before `give_up_at`.

    Args:
        pool: Of the ledger.
        redis: The shard's server.
        shard: Of the drop.
        drop_no: Of the drop.
        give_up_at: By `time.monotonic`: how long to wait for pending grants.
        mend: Nobody can grab meanwhile: apply a definition that is behind, and report at once
            what waiting cannot bring right. Otherwise nothing is written, and everything may
            come right until `give_up_at`.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked.
    """
    first = look = await take_look(pool, redis, shard, drop_no)
    while True:
        expired = monotonic() >= give_up_at
        if mend and not look.loaded and not look.epoch_moved:
            return Examination(look, look.judge(), in_motion=False)
        applied = await apply_definition(redis, look.ledger.drop) if mend and look.behind else None
        if look.loaded and look.at_rest and not (look.behind or look.ahead):
            findings = look.judge() or await _compare(pool, redis, look, at_rest=True)
            again = await take_look(pool, redis, shard, drop_no)
            if again == look:
                return Examination(look, findings, in_motion=False)
            look = again
        elif look.at_rest and applied is DefinitionResult.CONFLICT:
            return Examination(look, [_behind(look)], in_motion=False)
        elif mend and not (look.behind or look.ahead) and (decisive := look.judge()):
            return Examination(look, decisive, in_motion=False)  # drainers cannot bring it right
        if expired:
            return await _judge_restless(pool, redis, first, look)
        await asyncio.sleep(POLL_MS / 1000)
        look = await take_look(pool, redis, shard, drop_no)


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
    return Examination(look, findings or await _compare(pool, redis, look, at_rest=False), in_motion=True)


async def _compare(pool: "Pool[asyncpg.Record]", redis: Redis, look: Look, *, at_rest: bool) -> list[Finding]:
    drift = await compare_holders(pool, redis, look.ledger.drop, at_rest=at_rest)
    if drift.missing or drift.differing:
        detail = (
            f"of {drift.row_count} vouchers {drift.missing} have no holder, {drift.differing} another note"
        )
        return [Finding(Kind.HOLDERS, drift.missing + drift.differing, detail)]
    return []


def _behind(look: Look) -> Finding:
    version = look.before.state.version if look.before.state else 0
    detail = f"Redis holds version {version} of the definition, Postgres {look.ledger.drop.version}"
    return Finding(Kind.DEFINITION, 1, detail)


def _progress(look: Look) -> tuple[int, int, int]:
    state = look.after.state
    return (look.ledger.issued, state.issued, state.pending) if state else (look.ledger.issued, 0, 0)
