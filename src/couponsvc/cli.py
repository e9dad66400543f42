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

from couponsvc.processes.running import ProcessFailed, run_loop, run_process

app = typer.Typer(
    name="couponsvc",
    help="Hands out limited vouchers to very many people at once, and proves that it did so correctly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataDir = Annotated[Path, typer.Option(help="Where `couponsvc up` keeps its files.")]
DEFAULT_DATA_DIR = Path("var")


@app.command()
def up(  # noqa: PLR0917 - options of a command, given by name
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    workers: Annotated[int, typer.Option(min=1, max=64, help="API processes on the port.")] = 1,
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
def migrate() -> None:
    """Bring the database to this version's schema, once."""
    from couponsvc.processes.migrate import run_migrate

    run_loop(run_migrate())


def main() -> None:
    """Run the command line; the process ends with one of the contract's exit codes."""
    try:
        app()
    except ProcessFailed as error:
        typer.echo(f"couponsvc: {error}", err=True)
        sys.exit(error.exit_code)
