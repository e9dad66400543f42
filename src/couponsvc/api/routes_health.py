"""Health, metrics and documentation: no credential, and nothing in them that needs one."""

import asyncio
from importlib.metadata import version
from importlib.resources import files
from typing import Final

import asyncpg
from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from redis.exceptions import RedisError

from couponsvc.api import answer_models
from couponsvc.api.access import ServicesOf
from couponsvc.api.answers import json_answer
from couponsvc.api.openapi import problems
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.services import Services
from couponsvc.ledger import migrate
from couponsvc.programs.figures import ServerIdentity, identify, is_blessed
from couponsvc.support import logs, metrics

router = APIRouter()
assets: Final = StaticFiles(directory=str(files("fastapi_standalone_docs") / "static"))
"""Swagger UI from a wheel: documentation works where there is no Internet."""
ASSETS_PATH: Final = "/docs/assets"
CHECK_TIMEOUT_S: Final = 1.0
"""A probe asks every few seconds; a server that needs longer is not ready."""

log = logs.get("api")


@router.get(
    "/livez",
    operation_id="livez",
    tags=["health"],
    summary="Does the process run?",
    responses={200: {"model": answer_models.AliveAnswer}},
)
async def livez() -> Response:
    """Asks nobody else: a process is not restarted because Postgres is away."""
    return json_answer({"status": "alive"})


@router.get(
    "/readyz",
    operation_id="readyz",
    tags=["health"],
    summary="Can the process serve grabs?",
    responses={200: {"model": answer_models.ReadyAnswer}, **problems("not_ready")},
)
async def readyz(services: ServicesOf) -> Response:
    """`missing` names what is not there.

    `redis`, `postgres`: cannot be reached. `migrations`: the schema is older or newer than this
    version. `blessing`: this Redis server was not checked yet. `gate`: this process is not connected
    to the gate.
    """
    redis, postgres = await asyncio.gather(_ask_redis(services), _ask_postgres(services))
    missing = []
    if redis is None:
        missing.append("redis")
    if postgres is None:
        missing.append("postgres")
    else:
        missing.extend(await _check_ledger(services, redis))
    if redis is not None and services.gate_closed_because() is not None:
        missing.append("gate")
    versions = {
        "redis": redis.version if redis else None,
        "postgres": postgres,
        "version": version("couponsvc"),
    }
    if missing:
        detail = f"Missing: {', '.join(missing)}."
        raise ProblemAnswer("not_ready", detail, missing=missing, **versions)
    return json_answer({"status": "ready", **versions})


@router.get(
    "/metrics",
    operation_id="metrics",
    tags=["health"],
    summary="Prometheus metrics of all processes of this machine",
    response_class=PlainTextResponse,
)
async def show_metrics() -> Response:
    """Prometheus text format."""
    return Response(await asyncio.to_thread(metrics.render), headers={"content-type": metrics.CONTENT_TYPE})


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Swagger UI on the document."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="couponsvc",
        swagger_js_url=f"{ASSETS_PATH}/swagger/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS_PATH}/swagger/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS_PATH}/fastapi/favicon.png",
    )


async def _ask_redis(services: Services) -> ServerIdentity | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            server = await services.redis.info("server")
            replication = await services.redis.info("replication")
    except (RedisError, OSError) as error:
        log.warning("redis is not ready", error=type(error).__name__)
        return None
    return identify(server, replication)


async def _ask_postgres(services: Services) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            text: str = await services.pool.fetchval("SHOW server_version")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        log.warning("postgres is not ready", error=type(error).__name__)
        return None
    return text.split(" ", 1)[0]


async def _check_ledger(services: Services, redis: ServerIdentity | None) -> list[str]:
    """Whether the schema is this version's, and whether it knows this Redis."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            if await migrate.pending(services.pool):
                return ["migrations"]
            if redis and not await is_blessed(services.pool, services.settings.shard, redis):
                return ["blessing"]
    except migrate.SchemaRefused as error:
        log.warning("schema refused", reason=str(error))
        return ["migrations"]
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        log.warning("postgres is not ready", error=type(error).__name__)
        return ["postgres"]
    return []
