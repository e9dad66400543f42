"""What a relay forgets when it tends: secrets that sign no more, counts of subscriptions that are no more."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from couponsvc.outbox import subscriptions
from couponsvc.outbox.leasing import Pool
from couponsvc.settings import Settings
from couponsvc.support import metrics
from couponsvc.support.webhook_signature import new_secret
from couponsvc.values.event import EventType
from tests.integration.scene import make_drop
from tests.receivers import Receiver, seal, subscribe, subscription
from tests.relays import at_work, opened, tell

ISSUED = [EventType.VOUCHER_ISSUED.public]
URL = "http://127.0.0.1:1/"
PATIENCE_S = 10.0
_ROTATED = """
UPDATE subscriptions SET previous_sealed_secret = $2, previous_until = now() + $3::int * interval '1 second'
WHERE subscription_no = $1
"""


async def until(claim: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await claim():
            await asyncio.sleep(0.02)


async def test_a_secret_that_signs_no_more_is_wiped_and_one_that_does_is_kept(
    settings: Settings, pool: Pool
) -> None:
    await make_drop(pool)
    ended = (await subscribe(pool, URL)).subscription_no
    living = (await subscribe(pool, URL)).subscription_no
    for number, left_s in ((ended, -1), (living, 3_600)):
        await pool.execute(_ROTATED, number, seal(number, new_secret()), left_s)
    before = await subscription(pool, living)

    async def wiped() -> bool:
        return (await subscription(pool, ended))["previous_sealed_secret"] is None

    async with opened(settings) as relay, at_work(relay):
        await until(wiped)
    row = await subscription(pool, ended)
    assert row["previous_until"] is None
    assert row["sealed_secret"], "the newest is not touched"
    assert await subscription(pool, living) == before


def shown(name: str) -> bool:
    return f'subscription_id="{name}"' in metrics.render().decode()


async def test_counts_of_a_subscription_that_was_deleted_are_shown_no_more(
    settings: Settings, pool: Pool
) -> None:
    drop = await make_drop(pool)
    async with Receiver().listening() as receiver, opened(settings) as relay:
        gone = await subscribe(pool, f"{receiver.url}/gone", types=ISSUED)
        kept = await subscribe(pool, f"{receiver.url}/kept", types=ISSUED)
        await tell(pool, drop, 1)
        await relay.run_once()
        assert shown(gone.subscription_id)
        assert shown(kept.subscription_id)
        assert await subscriptions.delete(pool, 1, gone.subscription_no)

        async def forgotten() -> bool:
            return not shown(gone.subscription_id)

        async with at_work(relay):
            await until(forgotten)
        assert shown(kept.subscription_id)


_COUNT = """
import sys
from couponsvc.outbox.metrics import attempts
from couponsvc.support import metrics
for name in ("sub_1", "sub_2"):
    attempts.labels(name, "delivered").inc()
if sys.argv[1] == "forget":
    for labels in metrics.label_sets(attempts):
        if labels["subscription_id"] == "sub_1":
            metrics.forget_labels(attempts, labels)
    assert [labels["subscription_id"] for labels in metrics.label_sets(attempts)] == ["sub_2"]
print(metrics.render().decode())
"""


def test_where_processes_share_their_metrics_one_forgets_for_all_also_for_those_that_have_ended(
    tmp_path: Path,
) -> None:
    def count(what: str) -> str:
        return subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _COUNT, what],
            env={**os.environ, "COUPONSVC_METRICS_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def counted(name: str, text: str) -> list[str]:
        return [li.split()[-1] for li in text.splitlines() if f'"{name}"' in li]

    assert counted("sub_1", count("only count")) == ["1.0"]
    forgotten = count("forget")
    assert (counted("sub_1", forgotten), counted("sub_2", forgotten)) == ([], ["2.0"])
    afterwards = count("only count")
    assert (counted("sub_1", afterwards), counted("sub_2", afterwards)) == ([], ["3.0"])
