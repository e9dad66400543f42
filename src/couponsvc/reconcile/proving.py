"""Proves what counters cannot show: numbers (I3), events (I7) and holders (I8), as far as they are new."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import asyncpg
from redis.asyncio import Redis

from couponsvc.reconcile.holders import compare_holders
from couponsvc.reconcile.judging import Finding
from couponsvc.reconcile.looking import Look
from couponsvc.reconcile.proofs import prove_numbers, prove_outbox
from couponsvc.reconcile.snapshot import Pool

STATEMENT_VOUCHERS_COUNT: Final = 200_000
"""Vouchers that are proven by one statement: about 50 ms of Postgres; a larger drop goes by itself."""


@dataclasses.dataclass
class Proven:
    """Up to which number each proof of a drop has come."""

    epoch: int = 0
    """Under which the holders were proven."""
    numbers_seq: int = 0
    outbox_seq: int = 0
    holders_seq: int = 0

    def begin(self, look: Look) -> None:
        """Forget what says nothing of the drop as it is now."""
        if look.ledger.issued < self.numbers_seq:  # Postgres was restored from an older copy
            self.numbers_seq = self.outbox_seq = self.holders_seq = 0
        if look.ledger.drop.epoch != self.epoch:
            self.epoch, self.holders_seq = look.ledger.drop.epoch, 0

    def covers(self, look: Look) -> bool:
        """Whether every voucher of this look is proven."""
        reached = {self.numbers_seq, self.outbox_seq, self.holders_seq}
        return reached == {look.ledger.issued} and self.epoch == look.ledger.drop.epoch


class Prover:
    """Remembers what was proven of the drops of one shard, and proves the rest."""

    def __init__(self, pool: "Pool[asyncpg.Record]", redis: Redis) -> None:
        self._pool: Final = pool
        self._redis: Final = redis
        self._proven: Final[dict[int, Proven]] = {}

    def covers(self, look: Look) -> bool:
        """Whether nothing of the drop is left to prove."""
        return look.drop_no in self._proven and self._of(look).covers(look)

    async def prove(self, looks: Sequence[Look]) -> dict[int, list[Finding]]:
        """What is wrong, by `drop_no`, with the vouchers issued since the last proof; all at the first.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
                two cannot be asked.
        """
        findings: dict[int, list[Finding]] = {}
        for look in looks:
            self._of(look).begin(look)
        for seqs in _portions([(look, self._of(look).numbers_seq) for look in looks]):
            for drop_no, proof in (await prove_numbers(self._pool, seqs)).items():
                self._proven[drop_no].numbers_seq = proof.proven_seq
                findings.setdefault(drop_no, []).extend(proof.findings)
        for seqs in _portions([(look, self._of(look).outbox_seq) for look in looks]):
            for drop_no, proof in (await prove_outbox(self._pool, seqs)).items():
                self._proven[drop_no].outbox_seq = proof.proven_seq
                findings.setdefault(drop_no, []).extend(proof.findings)
        resting = [look for look in looks if look.at_rest and self._of(look).holders_seq < look.ledger.issued]
        for drop_no, found in (await self._prove_holders(resting)).items():
            findings.setdefault(drop_no, []).extend(found)
        return findings

    def _of(self, look: Look) -> Proven:
        return self._proven.setdefault(look.drop_no, Proven())

    async def _prove_holders(self, looks: Sequence[Look]) -> dict[int, list[Finding]]:
        if not looks:
            return {}
        drifts = await compare_holders(
            self._pool, self._redis, [look.ledger for look in looks], at_rest=False,
            after_seqs={look.drop_no: self._of(look).holders_seq for look in looks},
        )  # fmt: skip
        for look in looks:
            if not drifts[look.drop_no].findings():
                self._of(look).holders_seq = look.ledger.issued
        return {drop_no: drift.findings() for drop_no, drift in drifts.items()}


def _portions(proven: Sequence[tuple[Look, int]]) -> Iterator[dict[int, int]]:
    """The numbers from which to prove, of drops that have issued more; so many as one statement bears."""
    portion: dict[int, int] = {}
    voucher_count = 0
    for look, proven_seq in proven:
        new_count = look.ledger.issued - proven_seq
        if new_count <= 0:
            continue
        if portion and voucher_count + new_count > STATEMENT_VOUCHERS_COUNT:
            yield portion
            portion, voucher_count = {}, 0
        portion[look.drop_no] = proven_seq
        voucher_count += new_count
    if portion:
        yield portion
