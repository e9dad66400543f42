"""Committing on a real Postgres: both paths, every verdict, races, and outcomes nobody saw."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.ledger.commit import Committer
from couponsvc.ledger.grouping import Settled, SettledPart
from couponsvc.settings import Settings
from couponsvc.values.drop import Drop
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import Confirmation, Entry
from tests.ledgers import Scene, entry, grant


@pytest.fixture
async def scene(settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> Scene:
    return Scene(settings, pool, redis)


@asynccontextmanager
async def committers(scene: Scene, count: int = 1) -> AsyncIterator[list[Committer]]:
    made = [Committer(scene.pool, scene.unseal, 0) for _ in range(count)]
    try:
        yield made
    finally:
        for committer in made:
            await committer.close()


def verdicts(settled: Sequence[Settled]) -> list[list[Verdict]]:
    return [[Verdict(c.verdict) for part in s.parts for c in told_in(part)] for s in settled]


def seqs(settled: Sequence[Settled]) -> list[int]:
    return [c.seq for s in settled for part in s.parts for c in told_in(part)]


def told_in(part: SettledPart) -> list[Confirmation]:
    return [Confirmation._make(row) for row in part.confirmations]


def crowd(drop: Drop, count: int, prefix: str = "p", *, entry_id: str = "1-1") -> Entry:
    grants = [grant(f"{prefix}{i}", f"{prefix}-n{i}", place=i) for i in range(count)]
    return entry(entry_id, [(drop.drop_no, drop.epoch)], grants)


async def test_a_batch_gets_numbers_without_gaps_in_the_order_of_the_stream(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        first = await committer.commit([crowd(drop, 3, "a"), crowd(drop, 2, "b")])
        second = await committer.commit([crowd(drop, 4, "c")])
    assert seqs(first) == [1, 2, 3, 4, 5]
    assert seqs(second) == [6, 7, 8, 9]
    assert [s.entry.grants[0].holder for s in first] == ["1:a0", "1:b0"]
    await scene.check_ledger()


async def test_confirmations_say_what_the_rows_say(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        (settled,) = await committer.commit([crowd(drop, 3)])
    rows = await scene.pool.fetch(
        "SELECT seq, code, out_request_no, (extract(epoch FROM issued_at) * 1000) AS ms, channel, region, "
        "ordinal, partner_no, person_token FROM vouchers ORDER BY seq"
    )
    told = told_in(settled.parts[0])
    assert [(r["seq"], r["code"], r["out_request_no"], r["ms"]) for r in rows] == [
        (c.seq, c.code, c.out_request_no, c.issued_ms) for c in told
    ]
    assert {(r["channel"], r["region"], r["ordinal"], r["partner_no"]) for r in rows} == {
        ("app", "370200", 1, 1)
    }


async def test_empty_and_foreign_channels_survive_the_joined_columns(scene: Scene) -> None:
    drop = await scene.add_drop()
    channels = ["", "a,b", "NULL", "{x}", 'q"uote', "回", ""]
    grants = [
        grant(f"p{i}", f"n{i}", place=i)._replace(channel=channel, region="")
        for i, channel in enumerate(channels)
    ]
    async with committers(scene) as (committer,):
        await committer.commit([entry("1-1", [(drop.drop_no, 1)], grants)])
        await committer.commit(
            [entry("1-2", [(drop.drop_no, 1)], [grant("alone", "n9")._replace(channel="")])]
        )
    rows = await scene.pool.fetch("SELECT channel, region FROM vouchers ORDER BY seq")
    assert [row["channel"] for row in rows] == [*channels, ""]
    assert {row["region"] for row in rows} == {"", "370200"}


@pytest.mark.parametrize("drop_count", [1, 3])
async def test_what_grants_share_and_what_they_do_not_is_kept_as_granted(
    scene: Scene, drop_count: int
) -> None:
    drops = [await scene.add_drop(f"drop-{i}", limit=2) for i in range(drop_count)]
    places = [(p, o, c, r) for p in (1, 2) for o in (1, 2) for c in ("", "app") for r in ("", "370200")]
    grants = [
        grant(
            f"p{i}", f"n{i}", partner_no=partner, ordinal=ordinal, place=i, drop_index=1 + i % drop_count
        )._replace(channel=channel, region=region)
        for i, (partner, ordinal, channel, region) in enumerate(places)
    ]
    batches = [grants[:1], grants[1:2], grants[2:6], grants[6:]]  # alone, alike, and unlike each other
    async with committers(scene) as (committer,):
        for batch in batches:
            settled = await committer.commit([entry("1-1", [(d.drop_no, 1) for d in drops], batch)])
            assert verdicts(settled) == [[Verdict.COMMITTED] * len(batch)]
    rows = await scene.pool.fetch("SELECT * FROM vouchers")
    kept = {
        (r["person_token"], r["out_request_no"], r["partner_no"], r["ordinal"], r["channel"], r["region"])
        for r in rows
    }
    assert kept == {
        (f"p{i}", f"n{i}", partner, ordinal, channel, region)
        for i, (partner, ordinal, channel, region) in enumerate(places)
    }
    await scene.check_ledger()


async def test_several_drops_are_committed_in_one_transaction(scene: Scene) -> None:
    drops = [await scene.add_drop(f"drop-{i}") for i in range(3)]
    grants = [grant(f"p{i}", f"n{i}", place=i, drop_index=1 + i % 3) for i in range(9)]
    async with committers(scene) as (committer,):
        await committer.commit([entry("1-1", [(d.drop_no, 1) for d in drops], grants)])
    assert await scene.pool.fetchval("SELECT count(DISTINCT xmin::text) FROM vouchers") == 1
    assert [r["issued"] for r in await scene.pool.fetch("SELECT issued FROM drops")] == [3, 3, 3]
    await scene.check_ledger()


async def test_the_last_unit_marks_the_drop_sold_out_and_tells_it(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=5)
    async with committers(scene) as (committer,):
        await committer.commit([crowd(drop, 4, "a")])
        assert await scene.pool.fetchval("SELECT sold_out_at FROM drops") is None
        await committer.commit([crowd(drop, 1, "b")])
    assert await scene.pool.fetchval(
        "SELECT d.sold_out_at = v.issued_at FROM drops d, vouchers v WHERE v.seq = 5"
    )
    told = await scene.pool.fetchval("SELECT data FROM outbox WHERE type = 'drop.sold_out'")
    assert told == '{"quantity": 5}'
    await scene.check_ledger()


async def test_a_batch_that_is_run_again_is_answered_the_same(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=5)
    async with committers(scene, 2) as (one, other):
        first = await one.commit([crowd(drop, 5)])
        assert await other.commit([crowd(drop, 5)]) == first
        assert await one.commit([crowd(drop, 5)]) == first
    await scene.check_ledger()


async def test_every_verdict_in_one_batch(scene: Scene) -> None:
    drop, other = await scene.add_drop(quantity=4), await scene.add_drop("other")
    async with committers(scene) as (committer,):
        await committer.commit(
            [
                entry("1-1", [(drop.drop_no, 1)], [grant("p1", "n1"), grant("p2", "n2", place=1)]),
                entry("1-2", [(other.drop_no, 1)], [grant("p1", "elsewhere")]),
            ]
        )
        settled = await committer.commit(
            [
                entry(
                    "2-1",
                    [(drop.drop_no, 1), (drop.drop_no, 9)],
                    [
                        grant("p1", "n1", place=0),  # replay
                        grant("p1", "again", place=1),  # under another number
                        grant("p3", "n2", place=2),  # another's number
                        grant("p3", "elsewhere", place=3),  # another drop's number
                        grant("p3", "n3", place=4),
                        grant("p3", "n3", place=5),  # twice in the batch
                        grant("p3", "n3-b", place=6),  # the same person, in the batch
                        grant("p4", "n3", place=7),  # a number taken in the batch
                        grant("p5", "n5", place=8),  # the last unit
                        grant("p6", "n6", place=9),  # one too many
                    ],
                ),
                entry("2-2", [(drop.drop_no, 9)], [grant("p7", "n7"), grant("p2", "n2", place=1)]),
            ]
        )
    assert verdicts(settled) == [
        [
            Verdict.COMMITTED, Verdict.HELD, Verdict.MISMATCH, Verdict.MISMATCH, Verdict.COMMITTED,
            Verdict.COMMITTED, Verdict.HELD, Verdict.MISMATCH, Verdict.COMMITTED, Verdict.EXCEEDED,
        ],
        [Verdict.STALE, Verdict.COMMITTED],
    ]  # fmt: skip
    told = told_in(settled[0].parts[0])
    assert [c.seq for c in told] == [1, 1, 0, 0, 3, 3, 3, 0, 4, 0]
    assert told[1].out_request_no == "n1"
    assert told[4] == told[5]._replace(place=4)
    assert settled[0].parts[0].mended == {1, 6}
    await scene.check_ledger()


async def test_an_unknown_drop_is_stale_and_others_do_not_suffer(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        settled = await committer.commit([entry("1-1", [(999, 1)], [grant()]), crowd(drop, 2)])
    assert verdicts(settled) == [[Verdict.STALE], [Verdict.COMMITTED] * 2]


async def test_one_drop_under_two_epochs_in_one_batch(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.pool.execute("UPDATE drops SET epoch = 2")
    async with committers(scene) as (committer,):
        settled = await committer.commit(
            [
                entry("1-1", [(drop.drop_no, 1)], [grant("p1", "n1")]),
                entry("1-2", [(drop.drop_no, 2)], [grant("p2", "n2")]),
            ]
        )
    assert verdicts(settled) == [[Verdict.STALE], [Verdict.COMMITTED]]
    await scene.check_ledger()


async def test_an_epoch_that_rises_between_two_batches_is_noticed(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        await committer.commit([crowd(drop, 2, "a")])
        await scene.pool.execute("UPDATE drops SET epoch = 2")
        settled = await committer.commit([crowd(drop, 2, "b")])
        third = await committer.commit([crowd(replace(drop, epoch=2), 2, "c")])
    assert verdicts(settled) == [[Verdict.STALE] * 2]
    assert verdicts(third) == [[Verdict.COMMITTED] * 2]
    await scene.check_ledger()


async def test_an_epoch_that_rises_while_the_commit_waits_is_seen(scene: Scene) -> None:
    """From the commit that raises the epoch on, the set of issued vouchers stands still."""
    drop = await scene.add_drop()
    async with committers(scene) as (committer,), scene.pool.acquire() as reconciler:
        await committer.commit([crowd(drop, 2, "a")])
        async with reconciler.transaction():
            await reconciler.execute("UPDATE drops SET epoch = 2")
            attempt = asyncio.create_task(committer.commit([crowd(drop, 2, "b")]))
            await asyncio.sleep(0.2)
            assert not attempt.done()
        assert verdicts(await attempt) == [[Verdict.STALE] * 2]
    assert await scene.pool.fetchval("SELECT count(*) FROM vouchers") == 2
    await scene.check_ledger()


async def test_a_commit_that_waited_bears_the_moment_after_its_wait(scene: Scene) -> None:
    """Otherwise a later number could be older than an earlier one."""
    drop = await scene.add_drop()
    async with committers(scene) as (committer,), scene.pool.acquire() as other:
        await committer.commit([crowd(drop, 2, "a")])
        async with other.transaction():
            await other.execute("SELECT 1 FROM drops FOR UPDATE")
            attempt = asyncio.create_task(committer.commit([crowd(drop, 2, "b")]))
            await asyncio.sleep(0.1)
            held_until = await other.fetchval("SELECT clock_timestamp()")
        await attempt
    assert await scene.pool.fetchval(
        "SELECT issued_at >= date_trunc('milliseconds', $1::timestamptz) FROM vouchers WHERE seq = 4",
        held_until,
    )


async def test_duplicates_among_new_grants_leave_no_gap(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        await committer.commit([crowd(drop, 6)])
        grants = [grant(f"p{i}", f"p-n{i}", place=i) for i in (0, 7, 3, 8, 5, 9)]
        settled = await committer.commit([entry("1-2", [(drop.drop_no, 1)], grants)])
    assert verdicts(settled) == [[Verdict.COMMITTED] * 6]
    assert seqs(settled) == [1, 7, 4, 8, 6, 9]
    await scene.check_ledger()


@pytest.mark.parametrize("foreseen", [0, 1, 3, 50, 98])
async def test_a_wrong_foresight_is_corrected(scene: Scene, foreseen: int) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        await committer.commit([crowd(drop, 2, "a")])
        committer._figures[drop.drop_no].issued = foreseen  # noqa: SLF001 - as after somebody else's commit
        assert seqs(await committer.commit([crowd(drop, 3, "b")])) == [3, 4, 5]
    await scene.check_ledger()


async def test_a_second_voucher_within_the_limit_and_a_third_beyond(scene: Scene) -> None:
    drop = await scene.add_drop(limit=2)
    grants = [grant("p1", f"n{i}", ordinal=i, place=i) for i in (1, 2)]
    async with committers(scene) as (committer,):
        await committer.commit([entry("1-1", [(drop.drop_no, 1)], grants)])
        again = [grant("p1", "n3", ordinal=1), grant("p2", "n4", ordinal=1), grant("p2", "n5", ordinal=1)]
        settled = await committer.commit([entry("1-2", [(drop.drop_no, 1)], again)])
    assert verdicts(settled) == [[Verdict.HELD, Verdict.COMMITTED, Verdict.STALE]]
    await scene.check_ledger()


async def test_a_rise_of_the_quantity_is_seen_by_the_next_batch(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=2)
    async with committers(scene) as (committer,):
        assert verdicts(await committer.commit([crowd(drop, 3, "a")])) == [
            [Verdict.COMMITTED, Verdict.COMMITTED, Verdict.EXCEEDED]
        ]
        await scene.pool.execute("UPDATE drops SET quantity = 4, sold_out_at = NULL")
        assert verdicts(await committer.commit([crowd(drop, 1, "b")])) == [[Verdict.COMMITTED]]
    assert await scene.pool.fetchval("SELECT issued FROM drops") == 3


async def test_racing_committers_leave_no_gap_and_issue_nobody_twice(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=200)
    async with committers(scene, 4) as made:
        batches = [[crowd(drop, 10, f"r{k}-")] for k in range(24)]

        async def work(committer: Committer, share: Sequence[list[Entry]]) -> list[Settled]:
            return [settled for batch in share for settled in await committer.commit(batch)]

        done = await asyncio.gather(*(work(c, batches[i::4]) for i, c in enumerate(made)))
    counted = [v for share in done for entry_verdicts in verdicts(share) for v in entry_verdicts]
    assert counted.count(Verdict.COMMITTED) == 200
    assert counted.count(Verdict.EXCEEDED) == 40
    told = sorted(s for share in done for s in seqs(share) if s)
    assert told == list(range(1, 201))
    await scene.check_ledger()


async def test_the_same_batch_committed_by_several_at_once_is_issued_once(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene, 4) as made:
        for turn in range(5):
            batch = [crowd(drop, 6, f"t{turn}-")]
            answers = await asyncio.gather(*(c.commit(batch) for c in made))
            assert all(answer == answers[0] for answer in answers)
    assert await scene.pool.fetchval("SELECT issued FROM drops") == 30
    await scene.check_ledger()


async def test_numbers_that_two_drops_contend_for_stand_once(scene: Scene) -> None:
    """Opposite orders of the same numbers on two drops: deadlocks are resolved, one drop wins each."""
    one, other = await scene.add_drop("one"), await scene.add_drop("other")
    async with committers(scene, 2) as made:
        for turn in range(5):
            numbers = [f"t{turn}-n{i}" for i in range(8)]
            upward = [grant(f"t{turn}-p{i}", n, place=i) for i, n in enumerate(numbers)]
            batches = (
                [entry("1-1", [(one.drop_no, 1)], upward)],
                [entry("1-2", [(other.drop_no, 1)], upward[::-1])],
            )
            answers = await asyncio.gather(*(c.commit(b) for c, b in zip(made, batches, strict=True)))
            counted = [v for answer in answers for vs in verdicts(answer) for v in vs]
            assert counted.count(Verdict.COMMITTED) == 8
            assert counted.count(Verdict.MISMATCH) == 8
    await scene.check_ledger()


async def end_backends(pool: "asyncpg.Pool[asyncpg.Record]", but: int) -> None:
    await pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND pid <> $1 AND backend_type = 'client backend'",
        but,
    )


async def test_a_connection_that_dies_while_it_waits_commits_nothing_and_the_batch_runs_again(
    scene: Scene,
) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,), scene.pool.acquire() as holder:
        await committer.commit([crowd(drop, 2, "a")])
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT 1 FROM drops FOR UPDATE")
        attempt = asyncio.create_task(committer.commit([crowd(drop, 3, "b")]))
        await asyncio.sleep(0.2)
        own: Any = holder.get_server_pid()
        await end_backends(scene.pool, own)
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await attempt
        await transaction.rollback()
        assert await scene.pool.fetchval("SELECT count(*) FROM vouchers") == 2
        assert seqs(await committer.commit([crowd(drop, 3, "b")])) == [3, 4, 5]
    await scene.check_ledger()


class Deaf:
    """A way to Postgres that, once told, lets a request through and swallows the answer."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.deaf = False
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        upstream, downstream = await asyncio.open_connection(*self._target)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
            while data := await source.read(65_536):
                if answers and self.deaf:
                    writer.close()  # the answer is on its way: cut the line before it arrives
                    return
                sink.write(data)

        both = [carry(reader, downstream, answers=False), carry(upstream, writer, answers=True)]
        try:
            await asyncio.wait(
                [asyncio.ensure_future(one) for one in both], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            writer.close()
            downstream.close()


async def test_a_commit_whose_answer_was_lost_is_found_committed(scene: Scene, database: str) -> None:
    drop = await scene.add_drop()
    address = database.rsplit("@", 1)[1].partition("/")[0]
    host, port = address.split(":")
    async with Deaf(host, int(port)) as line:
        pool = await asyncpg.create_pool(
            database.replace(address, f"127.0.0.1:{line.port}"), min_size=1, max_size=2
        )
        committer = Committer(pool, scene.unseal, 0)
        await committer.commit([crowd(drop, 2, "a")])
        line.deaf = True
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await committer.commit([crowd(drop, 3, "b")])
        line.deaf = False
        while await scene.pool.fetchval("SELECT count(*) FROM vouchers") < 5:
            await asyncio.sleep(0.01)
        settled = await committer.commit([crowd(drop, 3, "b")])
        assert seqs(settled) == [3, 4, 5]
        assert seqs(await committer.commit([crowd(drop, 1, "c")])) == [6]
        await committer.close()
        pool.terminate()
    await scene.check_ledger()


async def test_a_commit_that_is_cancelled_can_be_run_again(scene: Scene) -> None:
    drop = await scene.add_drop()
    async with committers(scene) as (committer,):
        for delay_ms in range(0, 12, 2):
            attempt = asyncio.create_task(committer.commit([crowd(drop, 3, f"c{delay_ms}-")]))
            await asyncio.sleep(delay_ms / 1000)
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
            assert verdicts(await committer.commit([crowd(drop, 3, f"c{delay_ms}-")])) == [
                [Verdict.COMMITTED] * 3
            ]
    assert await scene.pool.fetchval("SELECT issued FROM drops") == 18
    await scene.check_ledger()
