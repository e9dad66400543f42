"""`couponsvc events …`: what partners are told, what waits to be delivered, and telling it again.

For operators, on Postgres directly. Shows which events there are and how their deliveries go, never
what is in them: person tokens and codes stay between the service and the partner that owns them.
"""

# ruff: noqa: PLC0415 - commands import what they need, so that --help answers at once

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import typer

from couponsvc.processes.printing import print_json, print_rows
from couponsvc.processes.running import (
    EXIT_NOT_SO,
    EXIT_USAGE,
    ProcessFailed,
    run_loop,
    stop_on_signals,
)
from couponsvc.values.event import event_id, parse_event_id, parse_subscription_id
from couponsvc.values.moment import rfc3339, unix_ms

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

POSTGRES_DSN_NAME: Final = "COUPONSVC_POSTGRES_DSN"
FOLLOW_EVERY_S: Final = 0.5
"""How soon a new event is shown; one short query each time."""
PAGE_COUNT: Final = 1_000
"""Lines read at a time."""
DEFAULT_DATA_DIR: Final = Path("var")
SUMMARY_COLUMNS: Final = (
    "subscription_id", "partner_id", "receiver", "waiting_count", "delivering_count", "parked_count",
    "oldest_queued_at", "failure_count", "held_until", "last_delivered_at", "disabled_at",
)  # fmt: skip
QUEUE_COLUMNS: Final = (
    "event_id", "subscription_id", "state", "attempt_count", "queued_at", "due_at", "parked_because",
)  # fmt: skip
ATTEMPT_COLUMNS: Final = (
    "attempted_at", "event_id", "subscription_id", "attempt_no", "outcome", "status", "took_ms", "error",
)  # fmt: skip

events_app = typer.Typer(help="See and repeat what partners are told.", no_args_is_help=True)

DataDir = Annotated[Path, typer.Option(help="Of a running `couponsvc up`, where the environment names none.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="At most so many lines.")]
State = Literal["waiting", "delivering", "parked", "delivered", "failed", "gone"]


@events_app.command("tail")
def tail(
    partner: Annotated[str | None, typer.Option(help="Only this partner's.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Begin behind this event, 17 or evt_17; 0: at the first one.")
    ] = None,
    limit: Limit = 20,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Show the newest events, one a line; with --after, those behind it."""
    after_no = None if after is None else _event_no(after)

    async def work(pool: "Pool") -> None:
        from couponsvc.outbox import showing

        partner_no = None if partner is None else await showing.number_partner(pool, partner)
        if partner is not None and partner_no is None:
            raise ProcessFailed(f"no partner is named {partner}; see couponsvc partner list", EXIT_NOT_SO)
        if after_no:
            await _say_where(pool, after_no)
        cursor = await showing.before_newest(pool, partner_no, limit) if after_no is None else after_no
        stop = stop_on_signals() if follow else None
        left = limit
        while not (stop and stop.is_set()):
            wanted = PAGE_COUNT if follow else min(left, PAGE_COUNT)
            rows = await showing.events_after(pool, partner_no, cursor, wanted)
            for row in rows:
                typer.echo(_json_line(row) if as_json else _line(row))
            cursor = rows[-1]["event_no"] if rows else cursor
            left -= len(rows)
            if len(rows) == wanted and (follow or left):
                continue
            if stop is None:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), FOLLOW_EVERY_S)

    _run(data_dir, work)


@events_app.command("deliveries")
def deliveries(
    subscription: Annotated[str | None, typer.Option(metavar="sub_…", help="Only of this one.")] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Limit = 20,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show each subscription with what waits for it; then the queue, and the newest attempts."""
    subscription_no = None if subscription is None else _subscription_no(subscription)

    async def work(pool: "Pool") -> None:
        from couponsvc.outbox import showing

        found = await showing.subscriptions(pool, subscription_no)
        if subscription_no is not None and not found:
            raise _unknown(subscription)
        queued: list[dict[str, Any]] = []
        attempts: list[dict[str, Any]] = []
        if state is None or state in showing.QUEUE_STATES:
            queued = await showing.queued(pool, subscription_no, state, limit)
        if state is None or state in showing.OUTCOMES:
            attempts = await showing.attempts(pool, subscription_no, state, limit)
        parts = (
            ("subscriptions", SUMMARY_COLUMNS, found),
            ("queue", QUEUE_COLUMNS, queued),
            ("attempts", ATTEMPT_COLUMNS, attempts),
        )
        if as_json:
            print_json({title: rows for title, _, rows in parts})
            return
        for title, columns, rows in parts:
            typer.echo(f"{title}: none" if not rows else f"{title}:")
            if rows:
                print_rows(columns, rows, as_json=False)
            typer.echo("")

    _run(data_dir, work)


@events_app.command("redeliver")
def redeliver(
    subscription: Annotated[str, typer.Argument(metavar="sub_…", help="To whom.")],
    event: Annotated[list[str] | None, typer.Option(metavar="evt_…", help="This event; repeatable.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="MOMENT", help="What happened since then …")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="MOMENT", help="… and before that.")] = None,
    *,
    parked: Annotated[bool, typer.Option("--parked", help="Everything that was given up.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Queue events once more, due at once: by name, by time of happening, or all that were parked."""
    subscription_no = _subscription_no(subscription)
    if (bool(event) + (since is not None or until is not None) + parked) != 1 or (since is None) != (
        until is None
    ):
        raise ProcessFailed("say one of: --event evt_…, --from MOMENT --to MOMENT, --parked", EXIT_USAGE)
    event_nos = [_event_no(name) for name in event or ()]
    since_at, until_at = _moment(since), _moment(until)

    async def work(pool: "Pool") -> None:
        from couponsvc.outbox import redelivery, showing

        partner_no = await showing.partner_of(pool, subscription_no)
        if partner_no is None:
            raise _unknown(subscription)
        try:
            count = await redelivery.redeliver(
                pool,
                partner_no,
                subscription_no,
                event_ids=event_nos or None,
                since=since_at,
                until=until_at,
                parked=parked,
            )
        except redelivery.RedeliveryRefused as refused:
            raise ProcessFailed(str(refused), EXIT_NOT_SO) from None
        if as_json:
            print_json({"subscription_id": subscription, "queued": count})
        else:
            typer.echo(f"queued {count} for {subscription}; see couponsvc events deliveries")

    _run(data_dir, work)


def _run(data_dir: Path, work: "Callable[[Pool], Awaitable[None]]") -> None:
    """Connect, do one thing, close."""
    from couponsvc.support.postgres import open_pool

    if POSTGRES_DSN_NAME not in os.environ:
        from couponsvc.processes.run_file import adopt_running

        adopt_running(data_dir)

    async def whole() -> None:
        async with await open_pool(os.environ[POSTGRES_DSN_NAME], max_size=1) as pool:
            await work(pool)

    run_loop(whole())


async def _say_where(pool: "Pool", after_no: int) -> None:
    """Say on stderr why nothing follows an event, or not its next one; numbers have no gaps."""
    from couponsvc.outbox import showing

    newest = await showing.before_newest(pool, None, 0)
    found = await showing.events_after(pool, None, after_no, 1)
    first = found[0]["event_no"] if found else newest + 1
    if after_no > newest:
        there_is = f"the newest is {event_id(newest)}" if newest else "there is none yet"
        typer.echo(f"couponsvc: there is no {event_id(after_no)} yet; {there_is}", err=True)
    elif first > after_no + 1:
        typer.echo(f"couponsvc: events up to {event_id(first - 1)} are no longer kept", err=True)


def _event_no(name: str) -> int:
    number = 0 if name == "0" else parse_event_id(name if name.startswith("evt_") else f"evt_{name}")
    if number is None:
        raise ProcessFailed(f"{name} names no event; write one as evt_17", EXIT_USAGE)
    return number


def _subscription_no(name: str) -> int:
    number = parse_subscription_id(name)
    if number is None:
        raise ProcessFailed(f"{name} names no subscription; write one as sub_7", EXIT_USAGE)
    return number


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        unix_ms(moment)  # refuses one without a time zone
    except ValueError as error:
        raise ProcessFailed(f"{text}: {error}", EXIT_USAGE) from None
    return moment


def _unknown(subscription: str | None) -> ProcessFailed:
    return ProcessFailed(
        f"there is no subscription {subscription}; see couponsvc events deliveries", EXIT_NOT_SO
    )


def _json_line(row: dict[str, Any]) -> str:
    return msgspec.json.encode({**row, "occurred_at": rfc3339(unix_ms(row["occurred_at"]))}).decode()


def _line(row: dict[str, Any]) -> str:
    parts = [
        rfc3339(unix_ms(row["occurred_at"])),
        f"{row['event_id']:<12}",
        f"{row['partner_id']:<16}",
        f"{row['drop_id'] or '-':<24}",
        f"{row['type']:<16}",
    ]
    if row["voucher_count"]:
        count = row["voucher_count"]
        parts.append(f"{count} voucher{'s' if count > 1 else ''} of {row['first_seq']}..{row['last_seq']}")
    return "  ".join(parts).rstrip()
