"""One drop on a real gate and a real ledger, driven step by step, with a ledger of what was told.

Everything that decides, commits, acknowledges, checks or rebuilds is the service's own code; here is only
who is called when, what may be lost in between, and what must hold whatever the order was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from redis.asyncio import Redis

from couponsvc.gate.grabbing import OUTCOME_OF, SCRIPT, grab_command
from couponsvc.gate.loading import LoadIncomplete
from couponsvc.ledger import codes
from couponsvc.ledger.acknowledge import Report
from couponsvc.ledger.commit import UNKNOWN, Committer, UncheckedServer
from couponsvc.ledger.grouping import Settled
from couponsvc.ledger.inbox import Inbox
from couponsvc.ledger.stream import GrantStream
from couponsvc.programs.definitions import SQL, Conflict, DropDefinition, standing_drop
from couponsvc.programs.operations import Operator, define_drop, restock, set_status
from couponsvc.programs.telling import GateRebuilding, take_from_gate, tell_gate
from couponsvc.reconcile.attending import Attendant, ReconcileCounts
from couponsvc.reconcile.blessing import ServerChanged, bless_server
from couponsvc.reconcile.identity import read_blessing, read_identity
from couponsvc.reconcile.rebuild import Overtaken, load_raised, raise_epoch, rebuild
from couponsvc.reconcile.snapshot import LedgerSide, Pool, read_gate, read_ledger
from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import RespLine, open_line
from couponsvc.support.sealing import MasterKey
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.values import keys, wire
from couponsvc.values.drop import Drop, DropStatus
from couponsvc.values.grab import Grab, holder_of
from couponsvc.values.note import read_note
from couponsvc.values.outcome import Outcome, Verdict
from tests.conftest import MASTER_KEY
from tests.integration.scene import expected_holders, holders, make_drop
from tests.servers import DELETE_ALL

SHARD: Final = 0
PARTNER_NO: Final = 1
BACKLOG_MAX: Final = 1_000
LOST: Final = ServerIdentity("of-a-server-that-is-gone", "x")
"""Blessed while the server that answers has not been checked since its data changed."""
LOSE: Final = """UPDATE blessings
SET run_id = $1, replication_id = $2, checking_run_id = NULL, checking_replication_id = NULL"""
QUIET_ROUNDS_MAX: Final = 12
"""Rounds of draining and looking within which everything must have come to rest."""


@dataclass
class HandDrainer:
    """A drainer that is stopped between any two of its steps."""

    inbox: Inbox
    stream: GrantStream
    committer: Committer
    entries: Sequence[wire.Entry] = ()
    read_from: ServerIdentity = UNKNOWN
    """Where they were read."""
    settled: list[Settled] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """What a person was told of a number: never anything else again."""

    person: str
    seq: int
    issued_ms: int
    code: str


@dataclass
class World:
    """The drop, whoever works on it, and what everybody was told."""

    pool: "Pool[asyncpg.Record]"
    redis: Redis
    redis_url: str
    drop_no: int = 0
    drainers: list[HandDrainer] = field(default_factory=list)
    attendant: Attendant | None = None
    told: dict[str, Told] = field(default_factory=dict)
    lost_epoch: int = 0
    """The epoch of Postgres when Redis was lost last: until it is raised, Redis may be wrong."""
    ahead: bool = False
    """An operator took units from the gate and did not commit."""
    untold: bool = False
    """An operator died between the commit of a restock and telling the gate, so nobody was promised it."""
    copy: dict[bytes, bytes] | None = None
    paused: list[LedgerSide] = field(default_factory=list)
    """Rebuilds that stopped after they had raised the epoch."""
    seen: tuple[Drop, int] | None = None
    """What a reconciler saw before it was paused: the drop and the published epoch."""
    cached_epoch: int = 1
    """What an API process believes the epoch to be."""

    @property
    def consumers(self) -> int:
        return len(self.drainers)

    async def open(self, quantity: int, limit: int) -> None:
        """Empty both servers, define a drop, open it."""
        await self.redis.flushall()
        await self.pool.execute(DELETE_ALL)
        self.drop_no = (await make_drop(self.pool, quantity=quantity, limit=limit)).drop_no
        self.attendant = Attendant(self.pool, self.redis, SHARD)
        for _ in range(2):
            self.drainers.append(self._drainer())
        assert await self.reconcile() == "blessed"

    def _drainer(self) -> HandDrainer:
        stream = GrantStream(self._connect, keys.grants_key(SHARD), keys.GROUP, f"d{self.consumers}")
        master_key = MasterKey.from_base64(MASTER_KEY)
        committer = Committer(self.pool, lambda sealed: master_key.open(sealed, codes.KEY_PURPOSE), SHARD)
        return HandDrainer(Inbox(stream, 0), stream, committer)

    async def _connect(self) -> RespLine:
        return await open_line(make_connection(self.redis_url), timeout_s=5.0)

    async def close(self) -> None:
        """Close the connections of the drainers."""
        for drainer in self.drainers:
            drainer.stream.close()
            await drainer.committer.close()

    async def ledger(self) -> LedgerSide:
        return (await read_ledger(self.pool, SHARD, [self.drop_no]))[0]

    async def grab(self, person: str, number: str, *, stale: bool) -> Outcome | None:
        """One grab through the run-id fence, the API's cached epoch and the script; None: refused."""
        if await read_identity(self.redis) != await read_blessing(self.pool, SHARD):
            return None
        ledger = await self.ledger()
        if not stale:
            self.cached_epoch = ledger.drop.epoch
        before = (await read_gate(self.redis, [ledger.drop]))[0].state
        row = wire.grab_row(1, Grab(self.drop_no, holder_of(PARTNER_NO, person), number, "app", ""))
        names, arguments = grab_command(
            SHARD, wire.encode_origin("o", 1), [(self.drop_no, self.cached_epoch)], [row], BACKLOG_MAX
        )
        reply = await SCRIPT.run(self.redis, names, arguments)
        outcome = OUTCOME_OF[reply[0][0]]
        notes: list[bytes] = reply[1:]
        if before is not None and before.version >= ledger.drop.version:
            self.untold = False
        self._judge(person, number, outcome, notes, ledger)
        if before is not None and self.cached_epoch == ledger.drop.epoch:
            if outcome is Outcome.GRANTED:
                assert before.available > 0
            if outcome in {Outcome.SOLD_OUT, Outcome.SOLD_OUT_PENDING}:
                assert before.available == 0
        return outcome

    def _judge(
        self, person: str, number: str, outcome: Outcome, notes: Sequence[bytes], ledger: LedgerSide
    ) -> None:
        known = self.told.get(number)
        if outcome is Outcome.REPEATED:
            self._tell(number, person, *read_note(notes[0].decode())[1:])
        if outcome is Outcome.PERSON_LIMIT and (note := read_note(notes[0].decode())).committed:
            self._tell(note.out_request_no, person, *note[1:])
        if outcome is Outcome.SOLD_OUT and not (self.ahead or self.untold):
            assert ledger.issued >= ledger.drop.quantity, "sold out for good, and units remain"
        if known and known.person == person and not self.is_lost(ledger):
            quiet = {Outcome.REPEATED, Outcome.REPEATED_PENDING, Outcome.FENCED}
            assert outcome in quiet, f"{number} was confirmed, now it is {outcome}"

    def _tell(self, number: str, person: str, seq: int, issued_ms: int, code: str) -> None:
        now = Told(person, seq, issued_ms, code)
        assert self.told.setdefault(number, now) == now, "one number, two answers"

    def is_lost(self, ledger: LedgerSide) -> bool:
        """Whether Redis was lost and the drop was not rebuilt since."""
        return self.lost_epoch == ledger.drop.epoch

    async def read(self, index: int) -> None:
        """A drainer reads: new entries, its own, or those it takes over."""
        drainer = self.drainers[index]
        if not drainer.settled:
            delivery = await drainer.inbox.read(1)
            drainer.entries, drainer.read_from = delivery.entries, delivery.server

    async def commit(self, index: int) -> bool:
        """It commits what it has in its hands, or drops it; False where it may commit nothing."""
        drainer = self.drainers[index]
        entries, drainer.entries = drainer.entries, ()
        if not entries:
            return True
        try:
            drainer.settled = await drainer.committer.commit(entries, drainer.read_from)
        except UncheckedServer:
            drainer.inbox.recover()
            return False
        for _, parts in drainer.settled:
            for part in parts:
                for grant, row in zip(part.grants, part.confirmations, strict=True):
                    said = wire.Confirmation(*row)
                    person = grant.holder.partition(":")[2]
                    if said.verdict in {Verdict.COMMITTED, Verdict.HELD}:
                        self._tell(said.out_request_no, person, said.seq, said.issued_ms, said.code)
                    if said.verdict in {Verdict.EXCEEDED, Verdict.HELD}:
                        doubtful = part.key.epoch <= self.lost_epoch
                        assert doubtful, f"{grant.out_request_no} was pending, now {said.verdict}"
        return True

    async def acknowledge(self, index: int) -> None:
        """It reports what it committed."""
        drainer = self.drainers[index]
        if drainer.settled:
            settled, drainer.settled = drainer.settled, []
            before = await self._available_and_stream()
            await Report(await drainer.stream.line(), SHARD, settled).acknowledged()
            self._judge_returns(before, await self._available_and_stream(), settled)

    async def _available_and_stream(self) -> tuple[int, int | None, set[str]]:
        """The published epoch, what is available under it, and the ids that are on the stream."""
        drop = (await self.ledger()).drop
        gate = (await read_gate(self.redis, [drop]))[0]
        found: Any = await self.redis.xrange(keys.grants_key(SHARD))
        return gate.published, gate.state and gate.state.available, {key.decode() for key, _ in found}

    @staticmethod
    def _judge_returns(
        before: tuple[int, int | None, set[str]],
        after: tuple[int, int | None, set[str]],
        settled: Sequence[Settled],
    ) -> None:
        """Units go back to stock exactly where they existed, once, and in their own epoch."""
        if before[1] is None or after[1] is None or before[0] != after[0]:
            return
        returned = sum(
            row[1] == Verdict.MISMATCH
            for entry, parts in settled
            if entry.entry_id in before[2] - after[2]
            for part in parts
            if part.key.epoch == before[0]
            for row in part.confirmations
        )
        assert after[1] - before[1] == returned, "another number of units went back than existed"

    async def crash(self, index: int) -> None:
        """It dies, with whatever it had in its hands; another one starts in its place."""
        drainer = self.drainers[index]
        drainer.stream.close()
        await drainer.committer.close()
        self.drainers[index] = self._drainer()

    async def drain(self) -> None:
        """Everything that is on the stream, to its end."""
        for index in range(len(self.drainers)):
            await self.commit(index)
            await self.acknowledge(index)
        while True:
            await self.read(0)
            if not self.drainers[0].entries:
                return
            if not await self.commit(0):
                return
            await self.acknowledge(0)

    async def lose(self, *, copied: bool, noticed: bool) -> None:
        """Redis comes back empty or as it was once; `noticed`: as another server, as a restart does."""
        kept = self.copy if copied and self.copy is not None else {}
        await self.redis.flushall()
        for name, dumped in kept.items():
            await self.redis.restore(name, 0, dumped)
        self.lost_epoch = (await self.ledger()).drop.epoch
        if noticed:
            for drainer in self.drainers:
                drainer.read_from = LOST
            await self.pool.execute(LOSE, *LOST)

    async def keep_copy(self) -> None:
        """Remember Redis as it is, as a replica that stops listening."""
        names: Any = await self.redis.keys("*")
        dumped = [(name, await self.redis.dump(name)) for name in names]
        self.copy = {name: copy for name, copy in dumped if copy is not None}

    async def reconcile(self) -> str:
        """One round of a reconciler: bless an unknown server, or look."""
        server, previous = await read_identity(self.redis), await read_blessing(self.pool, SHARD)
        if server != previous:
            try:
                await bless_server(self.pool, self.redis, SHARD, server, previous)
            except ServerChanged:
                return "again"
            self.lost_epoch = 0  # what was granted before is confirmed, on this server, or never will be
            return "blessed"
        assert self.attendant is not None
        counts = ReconcileCounts()
        await self.attendant.look_at_all(counts)
        if counts.rebuilt:
            self.ahead = False
        return "busy" if counts.loaded + counts.defined + counts.drifting + counts.rebuilt else "quiet"

    async def rebuild(self) -> None:
        """A rebuild that nothing asks for, from what was seen just now or some time ago."""
        drop, published = self.seen or await self._see()
        self.seen = None
        try:
            await rebuild(self.pool, self.redis, drop, published)
        except (Overtaken, LoadIncomplete):
            return
        self.ahead = False

    async def _see(self) -> tuple[Drop, int]:
        drop = (await self.ledger()).drop
        return drop, (await read_gate(self.redis, [drop]))[0].published

    async def pause_before_raising(self) -> None:
        self.seen = await self._see()

    async def pause_after_raising(self) -> None:
        drop, published = await self._see()
        self.paused.append(await raise_epoch(self.pool, self.redis, drop, published))

    async def resume_oldest(self) -> None:
        raised = self.paused.pop(0)
        try:
            await load_raised(self.pool, self.redis, raised)
        except (
            Overtaken,
            LoadIncomplete,
        ):  # after a wipe it finds vouchers of an epoch that came after its own
            return
        self.ahead = False

    def _operator(self) -> Operator:
        return Operator(self.pool, self.redis, SHARD, "machine")

    async def restock(self, add: int) -> None:
        quantity = (await self.ledger()).drop.quantity
        try:
            await restock(self._operator(), "drop-a", current_quantity=quantity, add=add)
        except Conflict:
            assert (await self.ledger()).drop.status is DropStatus.CLOSED

    async def lower(self, by: int) -> None:
        """Take units from stock, where as many are free."""
        drop = (await self.ledger()).drop
        if drop.quantity <= by:
            return
        wanted = DropDefinition(
            "drop-a", drop.program_id, drop.template_id, drop.quantity - by, drop.per_person_limit,
            _moment(drop.opens_ms), _moment(drop.closes_ms), frozenset({"bank-a"}),
        )  # fmt: skip
        try:
            await define_drop(self._operator(), wanted)
        except (Conflict, GateRebuilding):
            assert (await self.ledger()).drop.quantity == drop.quantity

    async def lower_and_fail(self) -> None:
        """The gate gives the unit up, then the operator's transaction is undone."""
        async with self.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(
                    "UPDATE drops SET quantity = quantity - 1, version = version + 1"
                    " WHERE drop_no = $1 AND quantity > issued AND quantity > 1",
                    self.drop_no,
                )
                row = await connection.fetchrow(SQL["read_drop"], self.drop_no)
                assert row is not None
                lowered = standing_drop(row).drop
                if lowered.version > (await self.ledger()).drop.version:
                    await take_from_gate(self.redis, lowered, 1)
                    self.ahead = True
            except (Conflict, GateRebuilding):
                pass
            finally:
                await transaction.rollback()

    async def set_status(self, status: DropStatus) -> None:
        try:
            await set_status(self._operator(), "drop-a", status)
        except Conflict:
            assert (await self.ledger()).drop.status is DropStatus.CLOSED

    async def change_untold(self) -> None:
        """Postgres commits a restock, and the operator's process dies before the gate hears of it."""
        self.untold = True
        await self.pool.execute(
            "UPDATE drops SET quantity = quantity + 1, version = version + 1 WHERE drop_no = $1", self.drop_no
        )

    async def tell_again(self) -> None:
        await tell_gate(self.redis, (await self.ledger()).drop)

    async def check(self) -> None:
        """What must hold after every step."""
        ledger = await self.ledger()
        drop = ledger.drop
        rows = await self.pool.fetch(
            "SELECT *, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms FROM vouchers ORDER BY seq"
        )
        assert ledger.issued == len(rows) <= drop.quantity, "one too many"
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)), "gaps"
        stands = {
            row["out_request_no"]: Told(row["person_token"], row["seq"], row["issued_ms"], row["code"])
            for row in rows
        }
        assert self.told.items() <= stands.items(), "confirmed does not stand"
        persons = [told.person for told in stands.values()]
        assert all(persons.count(person) <= drop.per_person_limit for person in persons), "person limit"
        events = await self.pool.fetch(
            "SELECT first_seq, last_seq FROM outbox WHERE type = 'voucher.issued' ORDER BY first_seq"
        )
        told = [seq for first, last in events for seq in range(first, last + 1)]
        assert told == list(range(1, len(rows) + 1)), "events do not tell of every voucher once"
        await self._check_gate(ledger)

    async def _check_gate(self, ledger: LedgerSide) -> None:
        on_stream = await self._on_stream()
        backlog: Any = await self.redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD)
        assert int(backlog or 0) == len(on_stream), "the backlog is not what is on the stream"
        gate = (await read_gate(self.redis, [ledger.drop]))[0]
        if gate.state is None or gate.published != ledger.drop.epoch:
            return
        state = gate.state
        pending = on_stream.count(ledger.drop.epoch)
        assert min(state[:4]) >= 0
        assert state.pending == pending, "pending is not what is on the stream"
        if self.is_lost(ledger):
            return
        assert gate.holder_count == state.pending + state.issued
        assert state.available + state.pending + state.issued == state.quantity, "not conserved"
        assert state.issued <= ledger.issued <= state.issued + state.pending, "not accounted for"
        held = await holders(self.redis, ledger.drop)
        expected = await expected_holders(self.pool, ledger.drop)
        assert expected.keys() <= held.keys(), "a voucher without a holder"

    async def _on_stream(self) -> list[int]:
        """The epoch of every grant on the stream."""
        found: Any = await self.redis.xrange(keys.grants_key(SHARD))
        entries = [wire.decode_entry(entry_id, fields) for entry_id, fields in found]
        return [entry.drops[grant.drop_index - 1].epoch for entry in entries for grant in entry.grants]

    async def come_to_rest(self) -> None:
        """Nothing is lost any more: whatever happened, all must agree soon, and every unit be had."""
        self.attendant = Attendant(self.pool, self.redis, SHARD)
        while self.paused:
            await self.resume_oldest()
        if (await self.ledger()).drop.status is DropStatus.PAUSED:
            await self.set_status(DropStatus.ACTIVE)
        for _ in range(QUIET_ROUNDS_MAX):
            await self.drain()
            if await self.reconcile() == "quiet":
                break
        else:
            raise AssertionError("it does not come to rest")
        await self._check_rest()
        if (await self.ledger()).drop.status is DropStatus.CLOSED:
            return
        free = (await self.ledger()).drop.quantity - (await self.ledger()).issued
        for number in range(free):
            assert await self.grab(f"late-{number}", f"late-{number}", stale=False) is Outcome.GRANTED
        await self.drain()
        await self._check_rest()
        assert (await self.ledger()).issued == (await self.ledger()).drop.quantity, "one too few"
        assert await self.grab("too-late", "too-late", stale=False) is Outcome.SOLD_OUT
        await self.check()

    async def _check_rest(self) -> None:
        ledger = await self.ledger()
        state = (await read_gate(self.redis, [ledger.drop]))[0].state
        assert state is not None, "closed"
        assert (state.available, state.pending) == (ledger.drop.quantity - ledger.issued, 0), "stranded"
        assert (state.quantity, state.issued) == (ledger.drop.quantity, ledger.issued)
        assert await holders(self.redis, ledger.drop) == await expected_holders(self.pool, ledger.drop)
        assert await self._on_stream() == []


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
