"""What a relay counts of deliveries that succeed: how many, by endpoint, and how long after the commit."""

from datetime import UTC, datetime

from couponsvc.outbox.leasing import Pool
from couponsvc.settings import Settings
from couponsvc.support import metrics
from tests.integration.scene import issue, make_drop
from tests.receivers import Receiver, subscribe
from tests.relays import Clock, opened

LAG = "couponsvc_delivery_lag_seconds"
ATTEMPTS = "couponsvc_delivery_attempts_total"
ISSUED = ["couponsvc.voucher.issued.v1"]


def value(sample: str) -> float:
    """Of one line of what Prometheus is told; 0 where there is none."""
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith(f"{sample} ")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


async def test_a_delivery_is_measured_from_its_commit_and_counted_for_its_endpoint(
    settings: Settings, pool: Pool
) -> None:
    """Seven seconds by the relay's clock, which stands still while the receiver is away, then accepts."""
    drop = await make_drop(pool, quantity=10)
    clock = Clock(datetime.now(UTC).replace(microsecond=0))
    async with Receiver(status=500).listening() as receiver, opened(settings, clock) as relay:
        subscribed = await subscribe(pool, receiver.url, types=ISSUED)
        labels = f'subscription_id="{subscribed.subscription_id}"'
        failed, delivered = (f'{ATTEMPTS}{{outcome="{name}",{labels}}}' for name in ("failed", "delivered"))
        before = {name: value(name) for name in (failed, delivered, f"{LAG}_count", f"{LAG}_sum")}
        await issue(pool, drop, 1)
        await pool.execute("UPDATE outbox SET occurred_at = $1", clock.moment)
        assert (await relay.run_once()).failed == 1
        assert value(failed) == before[failed] + 1
        assert value(delivered) == before[delivered]
        assert value(f"{LAG}_count") == before[f"{LAG}_count"], "what was not accepted has no lag"
        receiver.status = 204
        clock.move(seconds=7)
        assert (await relay.run_once()).delivered == 1
        assert value(failed) == before[failed] + 1
        assert value(delivered) == before[delivered] + 1
        assert value(f"{LAG}_count") == before[f"{LAG}_count"] + 1
        lag_s = value(f"{LAG}_sum") - before[f"{LAG}_sum"]
        assert 7 - 0.001 <= lag_s <= 7 + 0.001
