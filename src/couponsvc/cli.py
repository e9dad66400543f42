"""The command line: thin; every command calls the module that does the work.

Exit codes: 0 done, 1 the thing checked is not so, 2 usage, 3 cannot reach what it needs.
Errors are one line on stderr. Imports are inside the commands, so that each process
loads its own stage only and `--help` answers at once.
"""

# ruff: noqa: PLC0415 - see above

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from couponsvc.admission_cli import key_app, partner_app
from couponsvc.events_cli import events_app
from couponsvc.processes.run_file import adopt_running
from couponsvc.processes.running import (
    EXIT_NOT_SO,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    ProcessFailed,
    ending_unread,
    load_settings,
    run_loop,
    run_process,
)

app = typer.Typer(
    name="couponsvc",
    help="Hands out limited vouchers to very many people at once, and proves that it did so correctly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(partner_app, name="partner")
app.add_typer(key_app, name="key")
app.add_typer(events_app, name="events")

DataDir = Annotated[Path, typer.Option(help="Where `couponsvc up` keeps its files.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="API processes on the port.")]
DEFAULT_DATA_DIR = Path("var")
EXIT_INTERRUPTED = 130
"""As a shell reports Ctrl-C."""


@app.command()
def up(  # noqa: PLR0917 - options of a command, given by name
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    workers: Workers = 1,
    redis_url: Annotated[
        str | None, typer.Option(envvar="COUPONSVC_REDIS_URL", help="Use this Redis, start none.")
    ] = None,
    postgres_dsn: Annotated[
        str | None, typer.Option(envvar="COUPONSVC_POSTGRES_DSN", help="Use this Postgres, start none.")
    ] = None,
) -> None:
    """Run everything on this machine; embedded engines where no URL is given."""
    from couponsvc.processes.up import Up, UpOptions
    from couponsvc.support import logs

    logs.configure(
        os.environ.get("COUPONSVC_LOG_FORMAT", "console"), os.environ.get("COUPONSVC_LOG_LEVEL", "info")
    )
    options = UpOptions(host, port, data_dir, workers, redis_url, postgres_dsn)

    async def whole() -> None:
        await Up(options).run()

    run_loop(whole())


@app.command()
def api() -> None:
    """Answer HTTP. Configured by COUPONSVC_… in the environment."""
    from couponsvc.processes.api import run_api

    run_process(run_api)


@app.command()
def drain() -> None:
    """Write grants from the stream to Postgres and confirm them."""
    from couponsvc.processes.drain import run_drain

    run_process(run_drain)


@app.command()
def reconcile() -> None:
    """Check Redis against Postgres continuously; rebuild it where it was lost."""
    from couponsvc.processes.reconcile import run_reconcile

    run_process(run_reconcile)


@app.command()
def relay(
    nice: Annotated[int, typer.Option(min=0, max=19, help="Priority behind other processes.")] = 0,
) -> None:
    """Tell partners what was committed: webhooks, the event feed, brokers."""
    from couponsvc.processes.relay import run_relay, yield_to_others

    yield_to_others(nice)
    run_process(run_relay)


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema, once."""
    from couponsvc.processes.migrate import run_migrate

    run_loop(run_migrate())


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="A program file; see examples/.")],
    url: Annotated[str | None, typer.Option(help="Of the API; without it the running `up` is asked.")] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="COUPONSVC_TOKEN", help="Of an operator; without it that of credentials.json."),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Create or update a program with its templates and drops; print what changed."""
    from couponsvc.client import ApiClient, ApiRefused, CredentialsError, Unreachable, read_credentials
    from couponsvc.processes.run_file import read_run_file
    from couponsvc.programs.apply import apply_program, summary
    from couponsvc.programs.program_file import ProgramFileError, read_program_file

    try:
        program = read_program_file(file)
        url = url or read_run_file(data_dir).url
        with ApiClient(url, token or read_credentials(data_dir).operator_token) as client, ending_unread():
            done = apply_program(client, program, lambda applied: typer.echo(str(applied)))
            typer.echo(summary(done))
    except ProgramFileError as error:
        raise ProcessFailed(str(error), EXIT_USAGE) from error
    except ApiRefused as error:
        raise ProcessFailed(str(error), EXIT_NOT_SO) from error
    except (CredentialsError, Unreachable) as error:
        raise ProcessFailed(str(error), EXIT_UNREACHABLE) from error


@app.command()
def demo(  # noqa: PLR0917 - options, which typer passes by name
    persons: Annotated[int, typer.Option(min=1, help="How many come; the stock follows.")] = 60_000,
    processes: Annotated[int, typer.Option(min=1, help="Processes of the crowd.")] = 2,
    workers: Workers = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep serving afterwards.")] = False,  # noqa: FBT002 - a flag
    partner: Annotated[  # noqa: FBT002 - a flag
        bool,
        typer.Option("--partner", help="A subscribed partner receives the events; its ledger is compared."),
    ] = False,
    kill: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--kill", help="Kill the relay and the partner at random meanwhile.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Kept afterwards; without it a temporary one that is removed.")
    ] = None,
) -> None:
    """Run a rush on a sample program; then the checked promises and figures."""
    from couponsvc.demo.command import DemoOptions, run_demo

    if kill and not partner:
        raise typer.BadParameter("--kill needs --partner: it kills the relay and the partner")
    options = DemoOptions(
        persons=persons,
        processes=processes,
        workers=workers,
        keep=keep,
        data_dir=data_dir,
        partner=partner,
        kill=kill,
    )
    raise typer.Exit(run_demo(options))


@app.command()
def check(
    drop: Annotated[str | None, typer.Option(help="Only this drop.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the conservation identity of every drop; exit 1 on any drift."""
    from couponsvc.reconcile.check import main as check_drops

    adopt_running(data_dir)
    with ending_unread():
        code = check_drops(load_settings(), drop)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; the process ends with one of the contract's exit codes."""
    try:
        sys.exit(app(standalone_mode=False))
    except ProcessFailed as error:
        typer.echo(f"couponsvc: {error}", err=True)
        sys.exit(error.exit_code)
    except TyperException as error:
        sys.exit(_wrong_usage(error.format_message()))
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)


def _wrong_usage(message: str) -> int:
    """Say on one line what is wrong; where nothing was asked, the help was shown already."""
    if message.strip():
        typer.echo(f"couponsvc: {' '.join(message.split())} See `couponsvc --help`.", err=True)
    return EXIT_USAGE
