"""A Postgres cluster that is made once per process and copied for every deployment.

It holds the schema and who may call: `initdb` and the migrations take seconds, a copy takes a tenth of one.
"""

import asyncio
import atexit
import base64
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from couponsvc.client.credentials import signing_key
from couponsvc.engines.account import Account
from couponsvc.engines.engine import engine_environment
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.ledger.migrate import migrate
from couponsvc.programs.admission import create_key, create_partner
from couponsvc.programs.credential import CredentialRequest, Holder, Kind
from couponsvc.support.postgres import open_pool
from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import HmacKey
from tests.faults.rush import copy_owned

PARTNERS: Final = ("bank-a", "wallet-b")
ACTOR: Final = "harness"
WAL_SEGMENT_MB: Final = 1
"""Small, so that a limit on the size of files can spare the log and hit the tables."""
SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "128MB",
    # Otherwise recovery makes segments of a megabyte, which a full disk of ours (a limit on all files,
    # those in memory included) refuses: then it neither ends nor goes on (seen once; a real disk does not).
    "min_dynamic_shared_memory": "16MB",
}


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who may call a deployment. Nothing secret is shown by `repr`."""

    master_key: str = field(repr=False)
    operator_token: str = field(repr=False)
    auditor_token: str = field(repr=False)
    keys: Mapping[str, HmacKey] = field(repr=False)
    """By partner_id."""


class LedgerTemplate:
    """The cluster to copy, and who is admitted in it."""

    _made: "LedgerTemplate | None" = None

    def __init__(self, engine: EmbeddedPostgres, admitted: Admitted) -> None:
        self._engine: Final = engine
        self.admitted: Final = admitted

    @classmethod
    async def get(cls) -> "LedgerTemplate":
        """The one of this process; made at the first call, removed when the process ends."""
        if cls._made is None:
            cls._made = await _make()
        return cls._made

    def copy_to(self, data_dir: Path) -> EmbeddedPostgres:
        """A server on a copy, not started."""
        # A binary that the engines' account could not reach was copied beside the template; it serves all.
        engine = EmbeddedPostgres(data_dir, binary=self._engine.binary, settings=SETTINGS)
        home = engine.home
        for name in ("cluster", "password"):
            source = self._engine.home / name
            if source.is_dir():
                copy_owned(source, home / name)
            else:
                shutil.copy2(source, home / name)
                engine.account.own(home / name)
        return engine


async def _make() -> LedgerTemplate:
    base = Path(tempfile.mkdtemp(prefix="couponsvc-template-"))
    base.chmod(0o711)  # as root, the engines' account must get through to its own part
    atexit.register(remove_data, base)
    engine = EmbeddedPostgres(make_data_dir(base / "data", Account.current()), settings=SETTINGS)
    await engine.start_async()
    try:
        await migrate(engine.dsn)
        admitted = await _admit(engine.dsn)
    finally:
        await engine.stop_async()
    await asyncio.to_thread(_shorten_segments, engine)
    return LedgerTemplate(engine, admitted)


def remove_data(base: Path) -> None:
    """Remove a data directory with what engines keep elsewhere (see `engines.place`)."""
    for link in base.glob("**/*"):
        if link.is_symlink() and link.is_dir() and link.name in {"redis", "postgres"}:
            shutil.rmtree(link.resolve(), ignore_errors=True)
    shutil.rmtree(base, ignore_errors=True)


async def _admit(dsn: str) -> Admitted:
    master_key = base64.b64encode(secrets.token_bytes(32)).decode()
    keys = {}
    async with await open_pool(dsn, max_size=1) as pool:

        async def credential(holder: Holder, kind: Kind, partner_id: str | None = None) -> tuple[str, str]:
            request = CredentialRequest(holder, kind, partner_id)
            made = await create_key(pool, MasterKey.from_base64(master_key), ACTOR, request)
            return made.key_id, made.secret or made.token or ""

        for partner_id in PARTNERS:
            await create_partner(pool, ACTOR, partner_id, partner_id)
            keys[partner_id] = signing_key(*await credential("partner", "hmac-sha256", partner_id))
        _, operator_token = await credential("operator", "bearer")
        _, auditor_token = await credential("auditor", "bearer")
    return Admitted(master_key, operator_token, auditor_token, keys)


def _shorten_segments(engine: EmbeddedPostgres) -> None:
    """Rewrite the log of a stopped cluster in small segments; a cluster without the tool stays as it is."""
    tool = engine.binary.path.parent / "pg_resetwal"
    if not tool.exists():
        return
    subprocess.run(  # noqa: S603 - a binary of the chosen Postgres
        [tool, f"--wal-segsize={WAL_SEGMENT_MB}", "-D", engine.home / "cluster"],
        check=True,
        capture_output=True,
        cwd="/",
        env=engine_environment(),
        **engine.account.popen_options(),
    )
