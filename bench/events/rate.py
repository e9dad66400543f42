"""How fast one relay works off a backlog of small, medium and full events, and how fast two do."""

from typing import Final

from bench.events.figure import Figure
from bench.events.ledger import Drained, ledgers
from bench.events.receiving import receiver
from bench.place import run_directory
from bench.targets import Say

BACKLOGS: Final = ((1, 4_000), (100, 150_000), (500, 250_000))
"""Vouchers per event, vouchers in all: some seconds each."""
RELAY_TARGET_US: Final = 8.0
"""CPU of the relay per voucher, in full events, HTTP included."""


async def measure(say: Say) -> list[Figure]:
    """Each backlog by one relay and by two, after a warm-up."""
    figures: list[Figure] = []
    with run_directory() as directory:
        async with receiver() as well, ledgers(directory, ["rate"]) as (ledger,):
            await ledger.subscribe(well)
            await ledger.drain(well, vouchers=20_000, per_event=100)
            await well.forget_drops()
            for per_event, vouchers in BACKLOGS:
                by: dict[int, Drained] = {}
                for relays in (1, 2):
                    by[relays] = await ledger.drain(
                        well, vouchers=vouchers, per_event=per_event, relays=relays
                    )
                    say(f"rate: {relays} relay(s), {per_event} a event: {by[relays].describe()}")
                figures += _figures(per_event, by)
    return figures


def _figures(per_event: int, by: dict[int, Drained]) -> list[Figure]:
    one, two = by[1], by[2]
    of = "events of 1 voucher" if per_event == 1 else f"events of {per_event} vouchers"
    full = per_event == BACKLOGS[-1][0]
    return [
        Figure(f"one relay, {of}: vouchers delivered", one.vouchers_per_s, "/s", one.describe()),
        Figure(
            f"one relay, {of}: CPU of the relay per voucher",
            one.relay_us,
            "µs",
            "as above",
            at_most=RELAY_TARGET_US if full else None,
        ),
        Figure(
            f"two relays : one, {of}", two.vouchers_per_s / one.vouchers_per_s, "", f"two: {two.describe()}"
        ),
    ]
