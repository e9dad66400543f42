"""The slow path of a commit: rule on every grant against the rows that stand, insert the rest."""

from collections.abc import Mapping, Sequence

import asyncpg

from couponsvc.ledger.codes import CodeBook
from couponsvc.ledger.grouping import Answers, Group
from couponsvc.ledger.reading import standing_vouchers
from couponsvc.ledger.verdicts import Asked, Figures, Standings, classify
from couponsvc.support.sql import Queries
from couponsvc.values.grab import split_holder
from couponsvc.values.outcome import Verdict
from couponsvc.values.voucher import StandingVoucher
from couponsvc.values.wire import Confirmation, DropEpoch, Grant

_commit = Queries("couponsvc.ledger", "commit")
_reading = Queries("couponsvc.ledger", "reading")

Connection = asyncpg.pool.PoolConnectionProxy


async def settle(
    connection: "Connection[asyncpg.Record]", groups: Sequence[Group], books: Mapping[int, CodeBook]
) -> dict[DropEpoch, Answers]:
    """Settle every grant of the groups within the caller's transaction.

    Args:
        connection: inside a transaction; nothing may be told before it is committed.
        groups: grants by drop and epoch; a drop may appear under several epochs.
        books: code book per drop_no; a drop without one does not exist.

    Raises:
        asyncpg.UniqueViolationError: another transaction took a number of these on another drop.
        asyncpg.PostgresError, OSError: as Postgres and its connection fail.
    """
    drop_nos = sorted({group.key.drop_no for group in groups})
    figures = {
        drop_no: Figures(*rest) for drop_no, *rest in await connection.fetch(_commit["lock_drops"], drop_nos)
    }
    issued_ms = await connection.fetchval(_commit["commit_moment"])
    standings = await _read_standings(connection, groups)
    bench = _Bench(figures, books, standings, issued_ms)
    answers = {group.key: bench.rule(group) for group in groups}
    await _insert(connection, bench.new, issued_ms)
    return answers


class _Bench:
    """Rules on groups in turn; what it grants counts for the grants that follow."""

    def __init__(
        self,
        figures: dict[int, Figures],
        books: Mapping[int, CodeBook],
        standings: Standings,
        issued_ms: int,
    ) -> None:
        self.new: list[StandingVoucher] = []
        self._figures = figures
        self._books = books
        self._standings = standings
        self._issued_ms = issued_ms

    def rule(self, group: Group) -> Answers:
        drop_no, epoch = group.key
        first, codes = self._codes(group)
        confirmations: list[Confirmation] = []
        mended: list[int] = []
        for position, grant in enumerate(group.grants):
            partner_no, token = split_holder(grant.holder)
            asked = Asked(drop_no, epoch, partner_no, token, grant.ordinal, grant.out_request_no)
            figures = self._figures.get(drop_no)
            verdict, standing = classify(asked, figures, self._standings)
            if verdict is Verdict.COMMITTED and standing is None and figures:
                seq = figures.issued + 1
                standing = self._issue(asked, grant, seq, codes[seq - first])
            if verdict is Verdict.HELD and standing and standing.ordinal == grant.ordinal:
                mended.append(position)
            confirmations.append(_confirmation(grant, verdict, standing))
        committed = all(row[1] == Verdict.COMMITTED for row in confirmations)
        return Answers(confirmations, frozenset(mended), all_committed=committed)

    def _codes(self, group: Group) -> tuple[int, list[str]]:
        """Codes for as many vouchers as the group may get, and the number of the first."""
        figures = self._figures.get(group.key.drop_no)
        if figures is None:
            return 1, []
        count = max(0, min(len(group.grants), figures.quantity - figures.issued))
        first = figures.issued + 1
        return first, self._books[group.key.drop_no].codes(group.key.drop_no, first, count)

    def _issue(self, asked: Asked, grant: Grant, seq: int, code: str) -> StandingVoucher:
        voucher = StandingVoucher(
            asked.drop_no, seq, asked.partner_no, asked.ordinal, self._issued_ms,
            asked.person_token, asked.out_request_no, code, grant.channel, grant.region,
        )  # fmt: skip
        self.new.append(voucher)
        self._standings.add(voucher)
        self._figures[asked.drop_no] = self._figures[asked.drop_no]._replace(issued=seq)
        return voucher


def _confirmation(grant: Grant, verdict: Verdict, standing: StandingVoucher | None) -> Confirmation:
    if standing is None:
        return Confirmation(grant.place, int(verdict), 0, 0, "", grant.out_request_no)
    return Confirmation(
        grant.place,
        int(verdict),
        standing.seq,
        standing.issued_ms,
        standing.code,
        standing.out_request_no,
    )


async def _read_standings(connection: "Connection[asyncpg.Record]", groups: Sequence[Group]) -> Standings:
    """Every voucher under a number of the groups, and every one of their persons in their drops."""
    drop_nos, partner_nos, tokens, numbers = [], [], [], []
    for group in groups:
        for grant in group.grants:
            partner_no, token = split_holder(grant.holder)
            drop_nos.append(group.key.drop_no)
            partner_nos.append(partner_no)
            tokens.append(token)
            numbers.append(grant.out_request_no)
    by_request = await connection.fetch(_reading["find_by_requests"], partner_nos, numbers)
    by_person = await connection.fetch(_reading["find_by_persons"], drop_nos, partner_nos, tokens)
    return Standings(standing_vouchers([*by_request, *by_person]))


async def _insert(
    connection: "Connection[asyncpg.Record]", vouchers: Sequence[StandingVoucher], issued_ms: int
) -> None:
    """Write the new vouchers, count them and tell of them."""
    if not vouchers:
        return
    drop_nos, seqs, partner_nos, ordinals, _, tokens, numbers, codes, channels, regions = (
        list(column) for column in zip(*vouchers, strict=True)
    )
    await connection.execute(
        _commit["insert_vouchers"],
        issued_ms, drop_nos, seqs, partner_nos, ordinals, tokens, numbers, codes, channels, regions,
    )  # fmt: skip
    counts: dict[int, int] = {}
    for drop_no in drop_nos:
        counts[drop_no] = counts.get(drop_no, 0) + 1
    await connection.execute(_commit["advance_drops"], issued_ms, list(counts), list(counts.values()))
