"""The continuous look: loads what is not loaded, applies what is behind, finds drift and mends it."""

import dataclasses
import math
from collections import Counter
from time import monotonic
from typing import Final

import asyncpg
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.gate.definition import DefinitionResult, apply_definition
from couponsvc.gate.loading import PublishResult, mend_backlog
from couponsvc.reconcile import metrics
from couponsvc.reconcile.glancing import Glancer
from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.looking import Look
from couponsvc.reconcile.proving import Prover
from couponsvc.reconcile.rebuild import Lost, load_all_raised, open_new_drops, raise_epochs
from couponsvc.reconcile.snapshot import Pool
from couponsvc.support import logs
from couponsvc.values.drop import Drop

PROOF_LOOKS_COUNT: Final = 3
"""Looks in a row that must agree before a drop in motion counts as wrong."""
AHEAD_FOR_S: Final = 2 * limits.STATEMENT_TIMEOUT_MS / 1000
"""Lowering a quantity takes units from Redis before Postgres commits; past this it never will."""
REBUILD_PAUSES_S: Final = (0, 1, 5, 30)
"""Before the next rebuild of a drop that was rebuilt and is still wrong: its cause is elsewhere."""

log = logs.get("reconcile")


@dataclasses.dataclass
class Attention:
    """What the reconciler remembers of one drop from look to look."""

    seen_loaded: bool = False
    streaks: Counter[Kind] = dataclasses.field(default_factory=Counter)
    ahead_since: float = math.inf
    rebuild_count: int = 0
    not_before: float = 0.0
    shown_drift: int | None = None
    """What the metric says."""


@dataclasses.dataclass
class ReconcileCounts:
    """What one round did, by number of drops."""

    standby: bool = False
    """Another reconciler leads; nothing was done."""
    blessed: bool = False
    """An unknown server was checked and blessed."""
    looked_at: int = 0
    loaded: int = 0
    defined: int = 0
    drifting: int = 0
    """Proven to be wrong, whether or not they could be mended."""
    rebuilt: int = 0


class Attendant:
    """Attends to the drops of one shard on a blessed server."""

    def __init__(self, pool: "Pool[asyncpg.Record]", redis: Redis, shard: int) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._shard: Final = shard
        self._attention: Final[dict[int, Attention]] = {}
        self._fresh: list[Drop] = []
        """Found by the look that is under way: never open before."""
        self._lost: list[Lost] = []
        """Found by it, too: to be loaded again."""
        self._glancer: Final = Glancer(pool, redis, shard)
        self._prover: Final = Prover(pool, redis)

    async def look_at_all(self, counts: ReconcileCounts) -> None:
        """Look at every drop that may be other than it was proven to be, and mend what is wrong.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of
                the two cannot be asked.
        """
        self._fresh, self._lost = [], []  # what a look found that broke off is found again
        glance = await self._glancer.glance()
        sound = []
        for look in glance.looks:
            findings = look.judge()
            if findings or look.epoch_moved or look.behind:
                await self._attend(look, findings, counts)
            else:
                sound.append(look)
        unproven = await self._prover.prove(sound)
        for look in sound:
            settled = await self._attend(look, unproven.get(look.drop_no, []), counts)
            if settled and self._prover.covers(look):
                self._glancer.settle(look)
        await self._carry_out(counts)
        counts.looked_at += glance.drop_count
        stream = glance.stream
        if stream.backlog and not stream.entry_count and await mend_backlog(self._redis, self._shard):
            log.error("backlog counted grants that are gone", count=stream.backlog)
        metrics.LAST_LOOK.set_to_current_time()

    async def _attend(self, look: Look, findings: list[Finding], counts: ReconcileCounts) -> bool:
        """Do what a look demands; whether the drop was at rest and nothing was to be done or watched."""
        drop = look.ledger.drop
        attention = self._attention.setdefault(drop.drop_no, Attention())
        if look.epoch_moved:
            return False
        if look.never_open and not attention.seen_loaded:
            self._fresh.append(drop)
            return False
        attention.seen_loaded = attention.seen_loaded or look.loaded
        if look.loaded and look.behind:
            result = await apply_definition(self._redis, drop)
            counts.defined += result is DefinitionResult.APPLIED
            if not (result is DefinitionResult.CONFLICT and look.at_rest):
                return False
            detail = "the quantity of Postgres is below what Redis granted, and nothing is pending"
            proven = [Finding(Kind.DEFINITION, 1, detail)]
        else:
            proven = self._proven(look, findings, attention)
        self._show_drift(drop.drop_id, sum(finding.amount for finding in proven), attention)
        if proven:
            counts.drifting += 1
            self._judge_lost(look, proven, attention)
        elif not attention.streaks:
            attention.rebuild_count = 0
        return look.at_rest and not findings

    @staticmethod
    def _show_drift(drop_id: str, drift: int, attention: Attention) -> None:
        if drift != attention.shown_drift:
            attention.shown_drift = drift
            metrics.DRIFT.labels(drop_id).set(drift)

    @staticmethod
    def _proven(look: Look, findings: list[Finding], attention: Attention) -> list[Finding]:
        """Those that hold: exact at rest or where nothing is loaded, otherwise seen often in a row."""
        now = monotonic()
        attention.ahead_since = min(attention.ahead_since, now) if look.ahead else math.inf
        if now - attention.ahead_since < AHEAD_FOR_S:
            findings = [finding for finding in findings if finding.kind is not Kind.AHEAD]
        kinds = {finding.kind for finding in findings}
        attention.streaks = Counter({kind: attention.streaks[kind] + 1 for kind in kinds})
        if look.at_rest or not look.loaded:
            return findings
        return [finding for finding in findings if attention.streaks[finding.kind] >= PROOF_LOOKS_COUNT]

    def _judge_lost(self, look: Look, proven: list[Finding], attention: Attention) -> None:
        """Have a drop loaded again where that may help, but not again and again."""
        drop = look.ledger.drop
        if monotonic() < attention.not_before:
            return
        for finding in proven:
            log.error(
                "drift", drop_id=drop.drop_id, kind=finding.kind, amount=finding.amount, detail=finding.detail
            )
        pause_s = REBUILD_PAUSES_S[min(attention.rebuild_count, len(REBUILD_PAUSES_S) - 1)]
        attention.rebuild_count += 1
        attention.not_before = monotonic() + pause_s
        if any(finding.kind.mended_by_rebuild for finding in proven):
            self._lost.append(Lost(drop, look.after.published))

    async def _carry_out(self, counts: ReconcileCounts) -> None:
        """Load what this look found to be new or lost, all together."""
        counts.loaded += sum(await open_new_drops(self._pool, self._redis, self._fresh))
        began = monotonic()
        raised = await raise_epochs(self._pool, self._redis, self._lost)
        results = await load_all_raised(self._pool, self._redis, raised, began)
        for side, result in zip(raised, results, strict=True):
            if result is PublishResult.PUBLISHED:
                counts.rebuilt += 1
                self._attention[side.drop.drop_no].streaks.clear()
