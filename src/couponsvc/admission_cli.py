"""`couponsvc partner …` and `couponsvc key …`: admit partners, hand out and end credentials.

Works on Postgres directly, so that the first credential can be made before any exists. What
is secret is printed once, on standard output, and cannot be shown again.
"""

# ruff: noqa: PLC0415 - commands import what they need, so that --help answers at once

import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from couponsvc.processes.printing import plain, print_json, print_rows, text
from couponsvc.processes.running import EXIT_NOT_SO, EXIT_USAGE, ProcessFailed, run_loop

if TYPE_CHECKING:
    from couponsvc.programs.admission import NewCredential, Pool
    from couponsvc.support.sealing import MasterKey

ACTOR: Final = "cli"
POSTGRES_DSN_NAME: Final = "COUPONSVC_POSTGRES_DSN"
MASTER_KEY_NAME: Final = "COUPONSVC_MASTER_KEY"

partner_app = typer.Typer(help="Admit partners.", no_args_is_help=True)
key_app = typer.Typer(help="Hand out, rotate and revoke credentials.", no_args_is_help=True)

DataDir = Annotated[Path, typer.Option(help="Of a running `couponsvc up`, where the environment names none.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PublicKey = Annotated[
    str | None, typer.Option(help="ed25519: base64 of the 32 bytes, or the path of a PEM file.")
]
DEFAULT_DATA_DIR: Final = Path("var")
RATE_MAX: Final = 1_000_000
"""As Postgres checks it: more than any shard decides."""
Work = Callable[["Pool", "MasterKey"], Awaitable[None]]


@partner_app.command("create")
def create_partner(
    partner_id: Annotated[str, typer.Argument(metavar="NAME", help="Identifier, e.g. bank-a.")],
    title: Annotated[str, typer.Option("--title", help="Name for people; NAME if left out.")] = "",
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Admit a partner. It needs a key next: couponsvc key create --partner NAME."""
    from couponsvc.programs import admission

    async def work(pool: "Pool", _: "MasterKey") -> None:
        await admission.create_partner(pool, ACTOR, partner_id, title or partner_id)
        if as_json:
            print_json({"partner_id": partner_id, "name": title or partner_id})
        else:
            typer.echo(f"admitted {partner_id}; next: couponsvc key create --partner {partner_id}")

    _run(data_dir, work)


@partner_app.command("list")
def list_partners(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Show every partner with its number of live keys."""
    from couponsvc.programs import admission

    async def work(pool: "Pool", _: "MasterKey") -> None:
        columns = (
            "partner_id",
            "name",
            "live_key_count",
            "grabs_per_second",
            "grabs_burst",
            "created_at",
        )
        print_rows(columns, await admission.list_partners(pool), as_json=as_json)

    _run(data_dir, work)


@partner_app.command("limit")
def limit_partner(
    partner_id: Annotated[str, typer.Argument(metavar="NAME", help="Whom to limit.")],
    grabs_per_second: Annotated[
        int | None, typer.Option(min=1, max=RATE_MAX, help="Over all API processes together.")
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(min=1, max=RATE_MAX, help="Grabs at once after a pause; a second's worth if left out."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Lift the limit.")] = False,  # noqa: FBT002 - an option
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Limit how many grabs a partner may send; in force everywhere within five seconds."""
    from couponsvc.programs import admission
    from couponsvc.values.rate import Rate

    if none == (grabs_per_second is not None) or (none and burst is not None):
        raise ProcessFailed("say either --grabs-per-second N [--burst M] or --none", EXIT_USAGE)
    rate = None if grabs_per_second is None else Rate(grabs_per_second, burst or grabs_per_second)

    async def work(pool: "Pool", _: "MasterKey") -> None:
        await admission.limit_partner(pool, ACTOR, partner_id, rate)
        if as_json:
            shown: dict[str, int | None] = {"grabs_per_second": None, "burst": None}
            if rate is not None:
                shown = {"grabs_per_second": rate.per_second, "burst": rate.burst_count}
            print_json({"partner_id": partner_id, **shown})
        elif rate is None:
            typer.echo(f"{partner_id} is not limited")
        else:
            typer.echo(f"{partner_id} may send {rate.per_second} grabs a second, {rate.burst_count} at once")

    _run(data_dir, work)


@key_app.command("create")
def create_key(  # noqa: PLR0917 - options of a command, given by name
    partner: Annotated[str | None, typer.Option(help="Whose key; a partner's NAME.")] = None,
    holder: Annotated[
        Literal["partner", "operator", "auditor"], typer.Option(help="For whom, if not a partner.")
    ] = "partner",
    kind: Annotated[
        Literal["hmac-sha256", "ed25519", "bearer"] | None,
        typer.Option(help="hmac-sha256 if left out; bearer for operators and auditors."),
    ] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Once per scope; all it may have if none.")] = None,
    public_key: PublicKey = None,
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3_650, help="Never if left out.")] = None,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a credential. Its secret or token is shown now and never again."""
    from couponsvc.programs import admission

    request = admission.CredentialRequest(
        holder=holder,
        kind=kind or ("hmac-sha256" if holder == "partner" else "bearer"),
        partner_id=partner,
        scopes=frozenset(scope) if scope else None,
        public_key=_public_key_text(public_key),
        label=label,
        expires_at=None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days),
    )

    async def work(pool: "Pool", master_key: "MasterKey") -> None:
        _print_new(await admission.create_key(pool, master_key, ACTOR, request), as_json=as_json)

    _run(data_dir, work)


@key_app.command("list")
def list_keys(
    partner: Annotated[str | None, typer.Option(help="Only this partner's.")] = None,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show every credential, without anything secret."""
    from couponsvc.programs import admission

    async def work(pool: "Pool", _: "MasterKey") -> None:
        columns = ("key_id", "kind", "holder", "scopes", "live", "expires_at", "revoked_at", "label")
        print_rows(columns, await admission.list_keys(pool, partner), as_json=as_json)

    _run(data_dir, work)


@key_app.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="The key to replace.")],
    grace_hours: Annotated[float, typer.Option(min=0, max=8_760, help="How long the old key lives on.")] = 24,
    public_key: PublicKey = None,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a key like KEY_ID beside it; the old one ends after the grace period."""
    from couponsvc.programs import admission

    async def work(pool: "Pool", master_key: "MasterKey") -> None:
        made, ends_at = await admission.rotate_key(
            pool,
            master_key,
            ACTOR,
            key_id,
            grace=timedelta(hours=grace_hours),
            public_key=_public_key_text(public_key),
        )
        _print_new(made, as_json=as_json, replaces={"key_id": key_id, "expires_at": plain(ends_at)})

    _run(data_dir, work)


@key_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key to end.")],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """End a credential; it is refused everywhere within five seconds."""
    from couponsvc.programs import admission

    async def work(pool: "Pool", _: "MasterKey") -> None:
        now = await admission.revoke_key(pool, ACTOR, key_id)
        if as_json:
            print_json({"key_id": key_id, "revoked_now": now})
        else:
            typer.echo(f"{key_id} is revoked" if now else f"{key_id} was revoked before; nothing changed")

    _run(data_dir, work)


def _run(data_dir: Path, work: Work) -> None:
    """Connect, do one thing, close.

    Raises:
        ProcessFailed: it cannot be done, or not be reached; one line that says what to do.
    """
    from couponsvc.programs.admission import Conflict, InvalidCredential, Unknown
    from couponsvc.programs.public_key import BadPublicKey
    from couponsvc.support.postgres import open_pool
    from couponsvc.support.sealing import BadMasterKey, MasterKey

    if POSTGRES_DSN_NAME not in os.environ or MASTER_KEY_NAME not in os.environ:
        from couponsvc.processes.run_file import adopt_running

        adopt_running(data_dir)

    async def whole() -> None:
        master_key = MasterKey.from_base64(os.environ[MASTER_KEY_NAME])
        async with await open_pool(os.environ[POSTGRES_DSN_NAME], max_size=1) as pool:
            await work(pool, master_key)

    try:
        run_loop(whole())
    except (Unknown, Conflict) as error:
        raise ProcessFailed(str(error), EXIT_NOT_SO) from error
    except (InvalidCredential, BadPublicKey, BadMasterKey) as error:
        raise ProcessFailed(str(error), EXIT_USAGE) from error


def _public_key_text(given: str | None) -> str | None:
    """Content of the named file, or the text itself where no such file exists."""
    if given is None:
        return None
    path = Path(given)
    try:
        return path.read_text("ascii") if path.is_file() else given
    except (OSError, UnicodeDecodeError) as error:
        raise ProcessFailed(f"cannot read the public key {path}: {error}", EXIT_USAGE) from error


def _print_new(made: "NewCredential", *, as_json: bool, replaces: Mapping[str, Any] | None = None) -> None:
    shown = {
        "key_id": made.key_id,
        "kind": made.kind,
        "holder": made.holder,
        "partner_id": made.partner_id,
        "scopes": list(made.scopes),
        "expires_at": plain(made.expires_at),
        "secret": made.secret,
        "token": made.token,
    }
    shown = {name: value for name, value in shown.items() if value is not None}
    if as_json:
        print_json({**shown, **({"replaces": replaces} if replaces else {})})
        return
    for name, value in shown.items():
        typer.echo(f"{name:<11} {text(value)}")
    if made.secret or made.token:
        typer.echo("Keep it now: it is not shown again.")
    if replaces:
        typer.echo(f"The old key {replaces['key_id']} ends at {replaces['expires_at']}.")
