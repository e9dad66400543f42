"""A voucher shop in memory that keeps the contract, and breaks it in one chosen way.

Everything is decided in one event loop without waiting, so the honest shop is right by construction.
A fault strikes a few times, at chosen opportunities, so that most answers stay right.
"""

import asyncio
import enum
import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import time
from typing import Any

COMMIT_S = 0.004
CONFIRM_WAIT_S = 0.08
Reply = tuple[int, bytes]


class Fault(enum.Enum):
    """One way to break a promise."""

    NONE = enum.auto()
    DOUBLE_ISSUE = enum.auto()
    OVERSELL = enum.auto()
    TWO_FOR_ONE_PERSON = enum.auto()
    LOST_VOUCHER = enum.auto()
    CHANGED_BYTES = enum.auto()
    OTHER_LEDGER = enum.auto()
    FOREIGN_VOUCHER = enum.auto()
    INVENTED_ROW = enum.auto()
    SOLD_OUT_TOO_EARLY = enum.auto()
    FINAL_TOO_EARLY = enum.auto()
    UNITS_STAY = enum.auto()
    GAP_IN_NUMBERS = enum.auto()
    SAME_NUMBER_TWICE = enum.auto()
    SAME_CODE_TWICE = enum.auto()
    LIMIT_WITHOUT_VOUCHER = enum.auto()
    LIMIT_FOR_NOTHING = enum.auto()
    LIMIT_SHOWS_ANOTHERS = enum.auto()
    MISMATCH_FOR_NOTHING = enum.auto()
    FORGOTTEN_PENDING = enum.auto()
    STUCK_PENDING = enum.auto()
    REFUSED_AFTER_VOUCHER = enum.auto()
    REFUSED_AND_ISSUED = enum.auto()
    OPENS_EARLY = enum.auto()
    OPENS_LATE = enum.auto()
    NOT_STARTED_AGAIN = enum.auto()
    ENDED_EARLY = enum.auto()
    PAUSED_BY_NOBODY = enum.auto()
    GRANTS_WHILE_PAUSED = enum.auto()
    UNKNOWN_DROP = enum.auto()
    FIGURES_DO_NOT_ADD_UP = enum.auto()
    SAMPLES_DO_NOT_ADD_UP = enum.auto()
    SOLD_OUT_REOPENS = enum.auto()
    ISSUED_FALLS = enum.auto()
    LOOK_UP_FAILS = enum.auto()
    SLOW = enum.auto()
    ERRORS = enum.auto()
    SILENT = enum.auto()


@dataclass
class Grant:
    person: str
    number: str
    done: asyncio.Event = field(default_factory=asyncio.Event)
    voucher: bytes = b""


@dataclass
class Drop:
    drop_id: str
    quantity: int
    limit: int
    opens_ms: float
    closes_ms: float
    paused: bool = False
    pending: int = 0
    issued: int = 0
    seq: int = 0
    rows: list[bytes] = field(default_factory=list)
    grants: dict[tuple[str, str], Grant] = field(default_factory=dict)
    held: dict[str, list[Grant]] = field(default_factory=lambda: defaultdict(list))
    sold_out_ms: float | None = None
    reads: int = 0

    @property
    def available(self) -> int:
        return self.quantity - self.pending - self.issued


class Shop:
    def __init__(self, fault: Fault = Fault.NONE, *, first: int = 3, times: int = 5) -> None:
        self.fault = fault
        self.drops: dict[str, Drop] = {}
        self.numbers: dict[str, tuple[str, str]] = {}
        self.struck = 0
        self._opportunities = 0
        self._first, self._times = first, times
        self._marked: set[str] = set()

    def strikes(self, fault: Fault, *, times: int | None = None) -> bool:
        """Whether this is an opportunity for the chosen fault, and its turn."""
        if fault is not self.fault:
            return False
        self._opportunities += 1
        strikes = self._opportunities >= self._first and self.struck < (times or self._times)
        self.struck += strikes
        return strikes

    # --- grabs ------------------------------------------------------------------------------------
    async def grab(self, drop_id: str, person: str, number: str, *, confirm: bool = True) -> Reply:
        if self.strikes(Fault.SLOW, times=60):
            await asyncio.sleep(0.25)
        if self.strikes(Fault.ERRORS):
            return 500, b"a proxy's own page"
        drop = self.drops.get(drop_id)
        if drop is None or self.strikes(Fault.UNKNOWN_DROP):
            return problem(404, "unknown_drop")
        grant = drop.grants.get((person, number))
        if grant is not None:
            return await self._repeat(drop, grant, confirm=confirm)
        if self.numbers.setdefault(number, (drop_id, person)) != (drop_id, person):
            return problem(409, "request_mismatch")
        refusal = self._window(drop) or await self._limit(drop, person) or self._stock(drop, number)
        if refusal is not None:
            return refusal
        return await self._grant(drop, person, number, confirm=confirm)

    async def _repeat(self, drop: Drop, grant: Grant, *, confirm: bool) -> Reply:
        if not grant.done.is_set():
            await self._wait(grant, confirm=confirm)
        if not grant.done.is_set():
            return pending(drop, grant)
        if self.strikes(Fault.DOUBLE_ISSUE):
            return await self._grant(drop, grant.person, grant.number, confirm=True)
        if self.strikes(Fault.CHANGED_BYTES):
            return 200, grant.voucher.replace(b",", b", ", 1)
        if self.strikes(Fault.REFUSED_AFTER_VOUCHER):
            return problem(409, "sold_out", retryable=True)
        return 200, grant.voucher

    def _window(self, drop: Drop) -> Reply | None:
        if drop.paused and not self.strikes(Fault.GRANTS_WHILE_PAUSED, times=1_000):
            return problem(409, "paused", retryable=True)
        if self.strikes(Fault.PAUSED_BY_NOBODY):
            return problem(409, "paused", retryable=True)
        now_ms = time() * 1000
        if now_ms >= drop.closes_ms or self.strikes(Fault.ENDED_EARLY):
            return problem(409, "ended")
        opens_ms = drop.opens_ms
        opens_ms -= 60 if self.fault is Fault.OPENS_EARLY else 0
        opens_ms += 60 if self.fault is Fault.OPENS_LATE else 0
        if now_ms < opens_ms or (drop.issued and self.strikes(Fault.NOT_STARTED_AGAIN)):
            return problem(409, "not_started", retryable=True)
        return None

    async def _limit(self, drop: Drop, person: str) -> Reply | None:
        held = drop.held[person]
        if len(held) < drop.limit:
            return self._wrong_limit(drop)
        if self.strikes(Fault.TWO_FOR_ONE_PERSON):
            return None
        await self._wait(held[0], confirm=True)
        if not held[0].done.is_set():
            return problem(409, "person_limit", retryable=True)
        return problem(409, "person_limit", voucher=held[0].voucher)

    def _wrong_limit(self, drop: Drop) -> Reply | None:
        """For a person below the limit: nothing stands in the way, unless this shop is broken."""
        if drop.rows and self.strikes(Fault.LIMIT_WITHOUT_VOUCHER):
            return problem(409, "person_limit")
        if drop.rows and self.strikes(Fault.LIMIT_FOR_NOTHING):
            return problem(409, "person_limit", retryable=True)
        if drop.rows and self.strikes(Fault.LIMIT_SHOWS_ANOTHERS):
            return problem(409, "person_limit", voucher=drop.rows[0])
        if self.strikes(Fault.MISMATCH_FOR_NOTHING):
            return problem(409, "request_mismatch")
        return None

    def _stock(self, drop: Drop, number: str) -> Reply | None:
        if number in self._marked:
            return problem(409, "sold_out", retryable=True)
        if drop.available > drop.quantity // 3:
            if self.strikes(Fault.SOLD_OUT_TOO_EARLY):
                return problem(409, "sold_out", retryable=True)
            if self.strikes(Fault.FINAL_TOO_EARLY):
                return problem(409, "sold_out")
        kept = 2 if self.fault is Fault.UNITS_STAY else 0
        if drop.available > kept:
            return None
        if drop.available == 0 and self.strikes(Fault.OVERSELL, times=1):
            return None
        return problem(409, "sold_out", retryable=bool(drop.pending or kept))

    async def _grant(self, drop: Drop, person: str, number: str, *, confirm: bool) -> Reply:
        grant = Grant(person, number)
        if self.strikes(Fault.FORGOTTEN_PENDING):
            self._marked.add(number)
            return pending(drop, grant)
        drop.grants[person, number] = grant
        drop.held[person].append(grant)
        drop.pending += 1
        if not self.strikes(Fault.STUCK_PENDING):
            asyncio.get_running_loop().call_later(COMMIT_S, self._commit, drop, grant)
        if self.strikes(Fault.REFUSED_AND_ISSUED, times=6):
            return problem(409, "sold_out", retryable=True)
        await self._wait(grant, confirm=confirm)
        if not grant.done.is_set():
            return pending(drop, grant)
        if len(drop.rows) > 1 and self.strikes(Fault.FOREIGN_VOUCHER):
            return 201, drop.rows[0]
        return 201, grant.voucher

    async def _wait(self, grant: Grant, *, confirm: bool) -> None:
        if confirm:
            try:
                await asyncio.wait_for(grant.done.wait(), CONFIRM_WAIT_S)
            except TimeoutError:
                return

    def _commit(self, drop: Drop, grant: Grant) -> None:
        drop.pending -= 1
        drop.issued += 1
        drop.seq += 1
        if self.strikes(Fault.GAP_IN_NUMBERS, times=1):
            drop.seq += 1
        seq = drop.seq - 1 if self.strikes(Fault.SAME_NUMBER_TWICE, times=1) else drop.seq
        code = f"{drop.drop_id}-{drop.seq - self.strikes(Fault.SAME_CODE_TWICE, times=1):09d}"
        grant.voucher = voucher(drop, grant, seq, code)
        if not self.strikes(Fault.LOST_VOUCHER):
            row = grant.voucher
            if self.strikes(Fault.OTHER_LEDGER):
                row = row.replace(b'"min_spend_fen":6000', b'"min_spend_fen":9000')
            drop.rows.append(row)
        if self.strikes(Fault.INVENTED_ROW, times=1):
            drop.issued, drop.seq = drop.issued + 1, drop.seq + 1
            invented = Grant("p-nobody", "n-invented")
            drop.rows.append(voucher(drop, invented, drop.seq, f"{drop.drop_id}-{drop.seq:09d}"))
        if not drop.available:
            drop.sold_out_ms = time() * 1000
        grant.done.set()

    # --- everything else ---------------------------------------------------------------------------
    def look_up(self, drop_id: str, number: str) -> Reply:
        drop = self.drops[drop_id]
        for grant in drop.grants.values():
            if grant.number == number:
                if grant.done.is_set() and not self.strikes(Fault.LOOK_UP_FAILS):
                    return 200, grant.voucher
                if not grant.done.is_set():
                    return pending(drop, grant)
        return problem(404, "unknown_request", retryable=True)

    def figures(self, drop_id: str) -> Reply:
        drop = self.drops[drop_id]
        drop.reads += 1
        now_ms = time() * 1000
        state = "open"
        if drop.paused:
            state = "paused"
        elif now_ms < drop.opens_ms:
            state = "scheduled"
        elif not drop.available and not drop.pending:
            state = "sold_out"
        available, issued = drop.available, drop.issued
        if self.fault is Fault.FIGURES_DO_NOT_ADD_UP:
            available += 1
        if issued > 2 and self.strikes(Fault.SAMPLES_DO_NOT_ADD_UP):
            available += 1
        if issued > 5 and self.strikes(Fault.ISSUED_FALLS):
            issued, available = 0, available + issued
        if state == "sold_out" and self.strikes(Fault.SOLD_OUT_REOPENS):
            state, issued, available = "open", issued - 1, 1
        return 200, json.dumps(
            {
                "drop_id": drop_id,
                "program_id": "test",
                "quantity": drop.quantity,
                "per_person_limit": drop.limit,
                "state": state,
                "available": available,
                "pending": drop.pending,
                "issued": issued,
                "sold_out_at": None if drop.sold_out_ms is None else moment(drop.sold_out_ms),
            }
        ).encode()

    def operate(self, drop_id: str, what: str, body: dict[str, Any]) -> Reply:
        drop = self.drops[drop_id]
        if what == "restock":
            drop.quantity += body["add"]
            drop.sold_out_ms = None
        else:
            drop.paused = what == "pause"
        return self.figures(drop_id)

    def ledger(self, drop_id: str, after_seq: int, limit: int) -> Reply:
        rows = [row for row in self.drops[drop_id].rows if json.loads(row)["seq"] > after_seq]
        rows.sort(key=lambda row: int(json.loads(row)["seq"]))
        return 200, b"".join(row + b"\n" for row in rows[:limit])


def moment(at_ms: float) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def voucher(drop: Drop, grant: Grant, seq: int, code: str) -> bytes:
    now = moment(time() * 1000)
    members = {
        "voucher_id": f"vch_{drop.drop_id}_{seq}",
        "drop_id": drop.drop_id,
        "seq": seq,
        "code": code,
        "person_token": grant.person,
        "out_request_no": grant.number,
        "status": "issued",
        "face_value_fen": 2000,
        "min_spend_fen": 6000,
        "issued_at": now,
        "valid_from": now,
        "valid_until": now,
    }
    return json.dumps(members, separators=(",", ":")).encode()


def pending(drop: Drop, grant: Grant) -> Reply:
    body = {"status": "pending", "drop_id": drop.drop_id, "out_request_no": grant.number}
    return 202, json.dumps(body).encode()


def problem(status: int, code: str, *, retryable: bool = False, voucher: bytes = b"") -> Reply:
    body = f'{{"code":"{code}","status":{status},"retryable":{str(retryable).lower()}'
    shown = b',"voucher":' + voucher if voucher else b""
    return status, body.encode() + shown + b"}"
