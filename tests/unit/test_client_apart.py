"""The client can be copied out: what it needs of the service is named here."""

import ast
from pathlib import Path

import couponsvc.client

CLIENT = Path(couponsvc.client.__file__).parent
ALLOWED = ("couponsvc.client", "couponsvc.support.signing", "couponsvc.support.webhook_signature")
DRIVERS = {"httptools", "httpcore2", "httpx2", "msgspec"}
"""httpcore2 is the part of httpx2 that sends; whoever installs one has the other."""


def test_it_imports_two_modules_of_the_service_and_four_packages() -> None:
    ours: set[str] = set()
    packages: set[str] = set()
    for path in CLIENT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            ours |= {name for name in names if name.startswith("couponsvc")}
            packages |= {name.split(".")[0] for name in names}
    assert {name for name in ours if not name.startswith(ALLOWED)} == set()
    assert packages & DRIVERS == DRIVERS
    assert not packages & {"asyncpg", "redis", "pydantic", "fastapi", "structlog", "uvloop", "typer"}


def test_it_offers_what_it_names() -> None:
    assert all(hasattr(couponsvc.client, name) for name in couponsvc.client.__all__)
