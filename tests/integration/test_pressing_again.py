"""Demo and fault tests press again by the policy that the client ships, and write down every single press."""

import random
from collections.abc import Iterable

import pytest

from couponsvc.client import GrabClient, Unreachable
from couponsvc.demo import plan as shares
from couponsvc.demo.person import People
from couponsvc.demo.plan import CrowdPlan
from couponsvc.demo.records import Why
from couponsvc.support.signing import HmacKey
from tests.faults.harness.asking import PAUSE_FIRST_S, PAUSE_MAX_S, Asker
from tests.faults.harness.history import GRAB, LOOK_UP, History
from tests.faults.harness.numbers import Number
from tests.integration.scripted_server import Reaction, answer, hangs_up, problem, says, scripted

pytestmark = pytest.mark.slow  # pauses of seconds

KEY = HmacKey("key-1", b"k" * 32)
BUSY = says(problem(503, "unavailable", "retry-after: 1", retryable=True))
PENDING = says(answer(202, b"{}"))
UNKNOWN = says(problem(404, "unknown_request"))
ISSUED = says(answer(201, b'{"seq":1}'))
NUMBER = Number("bank-a", "drop-1", "p-1", "n-1")


def people(url: str, client: GrabClient) -> People:
    return People(client, CrowdPlan(url, "key-1", "", ["drop-1"], 0, "run", 1, 1, 1, _seed_of_haste(), ""))


def _seed_of_haste() -> int:
    """A crowd whose first draw is low."""
    return next(seed for seed in range(100) if random.Random(seed).random() < 0.1)  # noqa: S311 - no secret


async def test_a_person_of_the_demo_never_presses_before_retry_after() -> None:
    async with scripted(BUSY, ISSUED) as service, GrabClient(service.url, KEY) as client:
        crowd = people(service.url, client)
        told = await crowd._settle("drop-1", "p-1", "n-1", Why.FIRST)  # noqa: SLF001 - one press of many
    first, second = crowd.presses
    assert told.outcome == "issued"
    assert (first.why, first.outcome, second.why, second.outcome) == (
        "first", "unavailable", "retry", "issued",
    )  # fmt: skip
    assert second.sent_ns - first.settled_ns >= 1e9


@pytest.mark.parametrize(
    ("why", "whys"),
    [
        (Why.DOUBLE, ["double", "retry", "looked up", "retry", "retry"]),
        (Why.MISMATCH, ["mismatch", "mismatch", "looked up", "mismatch", "mismatch"]),
    ],
)
async def test_every_press_of_the_demo_is_written_down_with_its_reason(why: Why, whys: list[str]) -> None:
    early = says(problem(409, "not_started", retryable=True))
    script = [hangs_up, PENDING, UNKNOWN, early, ISSUED]
    async with scripted(*script) as service, GrabClient(service.url, KEY) as client:
        crowd = people(service.url, client)
        await crowd._settle("drop-1", "p-1", "n-1", why)  # noqa: SLF001
    assert [press.why for press in crowd.presses] == whys
    assert [press.outcome for press in crowd.presses] == [
        "lost", "pending", "unknown_request", "not_started", "issued",
    ]  # fmt: skip
    assert {press.out_request_no for press in crowd.presses} == {"n-1"}


async def test_the_demo_ends_where_nobody_answers_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "UNREACHABLE_MAX_S", 0.3)
    async with scripted(ISSUED) as service:
        gone = service.url
    async with GrabClient(gone, KEY) as client:
        crowd = people(gone, client)
        with pytest.raises(Unreachable):
            await crowd._settle("drop-1", "p-1", "n-1", Why.FIRST)  # noqa: SLF001
    assert crowd.outcomes["unreachable"] > 1
    assert crowd.presses == []


async def insisted(*script: Reaction, attempts_max_count: int = 40) -> tuple[History, list[str], str]:
    history = History()
    async with scripted(*script) as service:
        asker = Asker(service.url, {"bank-a": KEY}, history)
        told = await asker.insist(0, NUMBER, attempts_max_count=attempts_max_count)
        asker.close()
        return history, service.request_lines, told.outcome


def _codes(history: History) -> Iterable[tuple[str, str]]:
    return [(call.action, f"{call.status} {call.code}".rstrip()) for call in history.calls]


async def test_an_app_of_the_fault_tests_asks_by_the_clients_policy_and_beyond_it() -> None:
    skewed = says(problem(401, "stale_signature"))
    returns = says(problem(409, "sold_out", retryable=True))
    history, _, outcome = await insisted(hangs_up, PENDING, UNKNOWN, skewed, returns, BUSY, PENDING, ISSUED)
    assert outcome == "issued"
    assert _codes(history) == [
        (GRAB, "0"), (GRAB, "202"), (LOOK_UP, "404 unknown_request"), (GRAB, "401 stale_signature"),
        (GRAB, "409 sold_out"), (GRAB, "503 unavailable"), (GRAB, "202"), (LOOK_UP, "201"),
    ]  # fmt: skip


async def test_an_app_gives_up_after_so_many_attempts_whatever_they_were_told() -> None:
    returns = says(problem(409, "sold_out", retryable=True))
    for script in ([returns], [hangs_up], [hangs_up, returns, PENDING]):
        history, lines, _ = await insisted(*script, attempts_max_count=4)
        assert len(history.calls) == len(lines) == 4


async def test_an_app_waits_longer_each_time_and_never_long() -> None:
    returns = says(problem(409, "sold_out", retryable=True))
    day = says(problem(503, "unavailable", "retry-after: 86400", retryable=True))
    history, _, outcome = await insisted(returns, returns, returns, returns, day, ISSUED)
    pauses_s = [
        (later.began_ns - call.ended_ns) / 1e9
        for call, later in zip(history.calls, history.calls[1:], strict=False)
    ]
    assert outcome == "issued"
    for turn, pause_s in enumerate(pauses_s[:4]):
        assert pause_s >= 0.5 * PAUSE_FIRST_S * 2**turn
    assert PAUSE_MAX_S <= pauses_s[4] < 10 * PAUSE_MAX_S
