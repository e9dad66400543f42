"""Forgets what was counted of subscriptions that are no more, so that metrics do not grow for ever."""

import asyncio
from collections import defaultdict

from couponsvc.outbox import metrics, subscriptions
from couponsvc.outbox.leasing import Pool
from couponsvc.support.metrics import forget_labels, label_sets
from couponsvc.values.event import parse_subscription_id


async def forget_ended(pool: Pool) -> int:
    """Show the attempts of subscriptions that were deleted no more; of how many subscriptions.

    A delivery that was under way meanwhile may be counted once more; the next turn forgets that.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    counted: defaultdict[int, list[dict[str, str]]] = defaultdict(list)
    for labels in await asyncio.to_thread(label_sets, metrics.attempts):
        if (number := parse_subscription_id(labels["subscription_id"])) is not None:
            counted[number].append(labels)
    if not counted:
        return 0
    ended = await subscriptions.find_ended(pool, sorted(counted))
    for number in ended:
        for labels in counted[number]:
            forget_labels(metrics.attempts, labels)
    return len(ended)
