"""Our rows: what one `couponsvc up` does with grabs that are new, repeated, or too late.

Each row has a drop of its own and comes twice: signed by the partner's key (RFC 9421, verified on
every request) and with the partner's bearer token. Requests are made and signed beforehand, per
loop, because a signature is good for five minutes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import ClassVar, Final

from bench import open_loop
from bench.contender import Level
from bench.row import Row
from bench.service import Counts, Service

QUANTITY: Final = 10_000_000
"""More than a run takes."""
REPEATED_COUNT: Final = 10_000
"""Vouchers that are asked for again and again; each gets its turn before the first is asked for twice."""
SOLD_OUT_COUNT: Final = 100
PREPARE_RATE_PER_S: Final = 3_000
PREPARE_CONNECTIONS: Final = 64
PREPARE_PATIENCE_S: Final = 60.0
"""They come no sooner than they can; only a service that stands still is given up."""
CHANNEL: Final = "app"
REGION: Final = "370200"


class OurRow(Row):
    """What all of them have in common.

    Args:
        service: A running `up`.
        bearer: With a token instead of a signature.
    """

    kind: ClassVar[str]
    """The slug without `-bearer`."""
    label: ClassVar[str]
    answers: ClassVar[frozenset[str]]
    """The kinds of answer (`values.answer.AnswerKind`) that are right."""
    at: ClassVar[Level]
    respond_async: ClassVar[bool] = False
    quantity: ClassVar[int] = QUANTITY

    def __init__(self, service: Service, *, bearer: bool) -> None:
        super().__init__(service.url, service.roots)
        self.name = f"{self.kind}-bearer" if bearer else self.kind
        self.title = f"couponsvc: {self.label}, bearer" if bearer else f"couponsvc: {self.label}"
        self.level, self.signed = self.at, not bearer
        self.drop_id: Final = f"bench-{self.name}"
        self.issued = 0
        self._service: Final = service
        self._at_start = Counts({}, {})

    def request(self, person_token: str, out_request_no: str) -> bytes:
        """One whole request."""
        if self.signed:
            return self._service.signer.grab_request(
                self.drop_id,
                person_token,
                out_request_no,
                channel=CHANNEL,
                region=REGION,
                respond_async=self.respond_async,
            )
        body = (
            f'{{"person_token":"{person_token}","out_request_no":"{out_request_no}",'
            f'"channel":"{CHANNEL}","region":"{REGION}"}}'
        )
        prefer = "prefer: respond-async\r\n" if self.respond_async else ""
        return (
            f"POST /v1/drops/{self.drop_id}/grabs HTTP/1.1\r\nhost: {self.url.removeprefix('http://')}\r\n"
            f"{prefer}authorization: Bearer {self._service.partner_token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def _requests(self, lot_no: int, wanted_count: int) -> Iterator[bytes]:
        for place in range(wanted_count):
            yield self.request(f"p-{lot_no:04x}{place:012x}", f"{self.name}-{lot_no:03}-{place:08}")

    async def prepare(self) -> None:
        """Open the drop."""
        self._service.define_drop(self.drop_id, self.quantity)

    async def before_loop(self) -> None:
        """Remember what the API has answered so far."""
        self._at_start = self._service.counts()

    async def settle(self) -> None:
        """Wait until the drainer has acknowledged every grant."""
        await self._service.settled(self.drop_id)

    async def judge_loop(self, answered: int, refused: int) -> list[str]:
        """Every answer must be of a right kind, by the API's own exact counts."""
        self.accepted += answered - refused
        counts = await self._service.counts_since(self._at_start, answered)
        told = sum(counts.kinds.values())
        if (
            counts.kinds.keys() <= self.answers
            and told == sum(counts.statuses.values()) == answered
            and refused == (answered if self.refuses else 0)
        ):
            return []
        right = " or ".join(sorted(self.answers))
        return [f"all {answered} answers should be {right}: {counts.kinds}, {counts.statuses}"]

    async def invariants(self) -> list[str]:
        """Issued is what was confirmed; numbers 1..n; nobody twice; every voucher has its event."""
        figures = await self._service.settled(self.drop_id)
        should = {"issued": self._issued_in_all(), "pending": 0}
        should["available"] = self.quantity - should["issued"]
        wrong = [
            f"{name} is {figures[name]}, not {count}"
            for name, count in should.items()
            if figures[name] != count
        ]
        wrong += judge_ledger(self._service.ledger(self.drop_id), should["issued"])
        untold = await self._service.untold(self.drop_id)
        if untold:
            wrong.append(f"outbox and events are off by {untold} vouchers")
        return wrong

    def _issued_in_all(self) -> int:
        return self.issued + self.accepted

    async def _issue(self, requests: Sequence[bytes]) -> None:
        """Have vouchers issued before the first round, and wait until they are counted as answers."""
        at_start = self._service.counts()
        result = await open_loop.run(
            self.url,
            requests,
            rate_per_s=PREPARE_RATE_PER_S,
            duration_s=len(requests) / PREPARE_RATE_PER_S,
            connections=PREPARE_CONNECTIONS,
            patience_s=PREPARE_PATIENCE_S,
        )
        assert result.answered == {201: len(requests)}, result.answered
        await self._service.counts_since(at_start, len(requests))
        self.issued += len(requests)


class Confirmed(OurRow):
    """A new person's grab, answered after the commit."""

    kind, label, at, answers = "confirmed", "confirmed", Level.COMMITTED, frozenset({"CONFIRMED"})


class RespondAsync(OurRow):
    """A new person's grab with `Prefer: respond-async`: answered when granted, committed later.

    A grant whose decision came too late to be read (1 s) is answered when it is committed: 201 instead
    of 202, which a preference (RFC 7240) allows.
    """

    kind, label, at, answers = (
        "respond-async",
        "respond-async",
        Level.QUEUED,
        frozenset({"PENDING", "CONFIRMED"}),
    )
    respond_async = True


class Repeated(OurRow):
    """A number that was confirmed long ago, asked for again: the same voucher."""

    kind, label, at, answers = "repeated", "repeated number", Level.COMMITTED, frozenset({"REPEATED"})

    async def prepare(self) -> None:
        """Have the vouchers issued that are asked for later."""
        await super().prepare()
        await self._issue(list(self._lot()))

    def _requests(self, lot_no: int, wanted_count: int) -> Iterator[bytes]:  # noqa: ARG002 - the same numbers
        return islice(cycle(self._lot()), wanted_count)

    def _lot(self) -> Iterator[bytes]:
        return super()._requests(0, REPEATED_COUNT)

    def _issued_in_all(self) -> int:
        return self.issued


class SoldOut(OurRow):
    """A new person's grab when every unit is issued: a final refusal."""

    kind, label, at, answers = "sold-out", "sold out", Level.COMMITTED, frozenset({"SOLD_OUT"})
    quantity = SOLD_OUT_COUNT
    refuses = True

    async def prepare(self) -> None:
        """Sell out."""
        await super().prepare()
        await self._issue(list(super()._requests(next(self._lots), SOLD_OUT_COUNT)))
        figures = await self._service.settled(self.drop_id)
        assert figures["state"] == "sold_out", figures


def judge_ledger(vouchers: Iterable[dict[str, object]], should_count: int) -> list[str]:
    """What is wrong with the vouchers of a drop of which nobody may have two, in sequence order."""
    wrong: list[str] = []
    seen: dict[str, Counter[object]] = {
        name: Counter() for name in ("person_token", "out_request_no", "code")
    }
    count = 0
    for count, voucher in enumerate(vouchers, 1):
        if voucher["seq"] != count and not wrong:
            wrong.append(f"number {count} is missing from the ledger: {voucher['seq']} follows")
        for name, counter in seen.items():
            counter[voucher[name]] += 1
    if count != should_count:
        wrong.append(f"the ledger has {count} vouchers, not {should_count}")
    for name, counter in seen.items():
        if len(counter) != count:
            wrong.append(f"{count - len(counter)} vouchers share a {name}")
    return wrong


KINDS: Final = (Confirmed, RespondAsync, Repeated, SoldOut)


def our_rows(service: Service) -> list[OurRow]:
    """Every kind, signed and with bearer."""
    return [kind(service, bearer=bearer) for kind in KINDS for bearer in (False, True)]


def our_names() -> list[str]:
    """Names of the rows that `our_rows` makes, in its order."""
    return [f"{kind.kind}{suffix}" for kind in KINDS for suffix in ("", "-bearer")]
