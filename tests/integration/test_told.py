"""I7: everything issued is told once, whether it waits in the outbox or is an event already."""

import asyncio
import json

import asyncpg
import pytest
from bench.service import UNTOLD

from couponsvc.outbox.sequencing import Sequencer
from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.proofs import prove_events, prove_outbox
from couponsvc.reconcile.snapshot import QUERIES
from couponsvc.values.drop import Drop
from tests.integration.outbox_scene import NOW, admit, commit, commit_apart, number_all, prepare, tell
from tests.integration.scene import make_drop

pytestmark = pytest.mark.slow

Pool = asyncpg.Pool


@pytest.fixture
async def drop(pool: "Pool[asyncpg.Record]") -> Drop:
    """Six vouchers of two partners are told, three are in the outbox."""
    await prepare(pool)
    drop = await make_drop(pool, quantity=100_000)
    [second] = await admit(pool, drop, "bank-b")
    await commit(pool, drop, [1, second, 1])
    await tell(pool, drop, "drop.paused")
    await commit(pool, drop, [second, second, second])
    await number_all(pool)
    await commit(pool, drop, [1, second])
    await commit(pool, drop, [1])
    return drop


async def found(pool: "Pool[asyncpg.Record]", drop: Drop, proven_seq: int = 0) -> list[Finding]:
    """What a full check finds."""
    [proof] = (await prove_outbox(pool, {drop.drop_no: proven_seq})).values()
    assert proof.proven_seq == (proven_seq if proof.findings else 9)
    return proof.findings + await prove_events(pool, drop.drop_no)


@pytest.mark.parametrize("proven_seq", [0, 3, 6, 8, 9])
async def test_what_is_told_and_what_waits_tile_the_issued_numbers(
    pool: "Pool[asyncpg.Record]", drop: Drop, proven_seq: int
) -> None:
    """Wherever an earlier proof ended: before, at or after what partners were told."""
    assert await found(pool, drop, proven_seq) == []
    await number_all(pool)
    assert await found(pool, drop, proven_seq) == []


async def test_a_drop_of_which_nothing_was_told_is_proven_by_its_outbox_alone(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    other = await make_drop(pool, "drop-b")
    assert other.drop_no != drop.drop_no
    for _ in range(3):
        await commit(pool, other, [1, 1, 1])
    assert await found(pool, other) == []
    await pool.execute("DELETE FROM outbox WHERE drop_no = $1 AND first_seq = 4", other.drop_no)
    assert [finding.amount for finding in await found(pool, other)] == [3]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM outbox WHERE first_seq = 7",
        "DELETE FROM outbox WHERE first_seq = 9",
        "UPDATE outbox SET last_seq = 9 WHERE first_seq = 7",
        "UPDATE outbox SET last_seq = 10 WHERE first_seq = 9",
        "INSERT INTO outbox (type, drop_no, first_seq, last_seq) VALUES ('voucher.issued', 1, 4, 6)",
        "UPDATE drop_tellings SET told_seq = 8",
        "UPDATE drop_tellings SET told_seq = 9",
        "UPDATE drop_tellings SET told_seq = 10",
        "UPDATE drop_tellings SET told_seq = 5",
        "DELETE FROM drop_tellings",
        "WITH told AS (UPDATE drop_tellings SET told_seq = 8) DELETE FROM outbox WHERE first_seq = 7",
        "WITH told AS (UPDATE drop_tellings SET told_seq = 9) DELETE FROM outbox",
        "DELETE FROM events WHERE first_seq = 1",
        "DELETE FROM events WHERE voucher_count = 0 AND type = 'drop.opened' AND partner_no = 1",
        "DELETE FROM events WHERE event_no = (SELECT max(event_no) FROM events)",
        "DELETE FROM events",
        "UPDATE events SET partner_no = 3 - partner_no WHERE first_seq IS NOT NULL",
        "UPDATE events SET voucher_count = voucher_count + 1 WHERE first_seq = 2",
        "UPDATE events SET sequence = sequence + 1 WHERE first_seq = 2",
        "UPDATE event_sequences SET last_sequence = last_sequence + 1",
        "DELETE FROM event_sequences",
    ],
)
async def test_a_planted_fault_is_found(pool: "Pool[asyncpg.Record]", drop: Drop, damage: str) -> None:
    await pool.execute(damage)
    findings = await found(pool, drop)
    assert {finding.kind for finding in findings} == {Kind.OUTBOX}
    assert all(finding.amount > 0 for finding in findings)


async def test_the_benches_ask_in_words_of_their_own_and_find_the_same(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    assert await pool.fetchval(UNTOLD, drop.drop_id) == 0
    for damage in (
        "DELETE FROM outbox WHERE first_seq = 7",
        "DELETE FROM outbox WHERE first_seq = 9",
        "UPDATE outbox SET last_seq = 9 WHERE first_seq = 7",
        "UPDATE outbox SET first_seq = 8, last_seq = 9 WHERE first_seq = 7",
        "INSERT INTO outbox (type, drop_no, first_seq, last_seq) VALUES ('voucher.issued', 1, 4, 6)",
        "UPDATE drop_tellings SET told_seq = 8",
        "DELETE FROM drop_tellings",
        "WITH told AS (UPDATE drop_tellings SET told_seq = 9) DELETE FROM outbox",
        "DELETE FROM events WHERE first_seq = 1",
    ):
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(damage)
            assert await connection.fetchval(UNTOLD, drop.drop_id) > 0, damage
            await transaction.rollback()
    await number_all(pool)
    assert await pool.fetchval(UNTOLD, drop.drop_id) == 0


async def test_where_old_events_were_dropped_the_kept_ones_are_held_against_themselves(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    await pool.execute("UPDATE event_counter SET last_event_no = 1000000")
    await prepare(pool)
    await number_all(pool)
    await commit_apart(pool, drop, [1])
    await commit(pool, drop, [1])
    await pool.execute("DROP TABLE events_0")
    assert await prove_events(pool, drop.drop_no) == []
    await pool.execute("UPDATE events SET sequence = sequence + 1 WHERE event_no = 1000003")
    assert [finding.kind for finding in await prove_events(pool, drop.drop_no)] == [Kind.OUTBOX]
    await pool.execute(
        "UPDATE events SET sequence = sequence - 1, voucher_count = 99 WHERE event_no = 1000003"
    )
    assert [finding.kind for finding in await prove_events(pool, drop.drop_no)] == [Kind.OUTBOX]


async def test_a_proof_is_exact_while_commits_and_relays_go_on(
    pool: "Pool[asyncpg.Record]", drop: Drop
) -> None:
    async def commit_all() -> None:
        for _ in range(60):
            await commit(pool, drop, [1, 2, 2])

    async def sequence() -> None:
        sequencer = Sequencer(pool)
        while not writing.done():
            await sequencer.run_once(NOW)

    writing = asyncio.create_task(commit_all())
    working = asyncio.create_task(sequence())
    looks, proven_seq = 0, 0
    while not writing.done():
        [proof] = (await prove_outbox(pool, {drop.drop_no: proven_seq})).values()
        assert [*proof.findings, *await prove_events(pool, drop.drop_no)] == []
        assert proof.proven_seq >= proven_seq
        proven_seq = proof.proven_seq if looks % 3 else 0
        looks += 1
    await asyncio.gather(writing, working)
    assert looks > 10


async def test_a_full_proof_of_events_reads_by_drop(pool: "Pool[asyncpg.Record]", drop: Drop) -> None:
    """Other drops' events are not read: by the index over drops, in every partition."""
    await pool.execute(
        "INSERT INTO events (event_no, partner_no, drop_no, sequence, type, occurred_at)"
        " SELECT n, 1, 2 + n % 50, n, 'drop.paused', now() FROM generate_series(1000, 20000) n"
    )
    await pool.execute("ANALYZE events")
    async with pool.acquire() as connection:
        statement = await connection.prepare(QUERIES["prove_events"])
        explained = json.dumps(await statement.explain(drop.drop_no))
    assert '"Index Name": "events_0_drop_no_event_no_idx"' in explained
    assert await prove_events(pool, drop.drop_no) == []
