"""The FastAPI application: everything but the grab itself, which the lane in front answers."""

import re
from importlib.metadata import version
from typing import Any, Final

import asyncpg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from couponsvc.api import (
    openapi,
    routes_drops,
    routes_events,
    routes_health,
    routes_programs,
    routes_subscriptions,
    routes_vouchers,
)
from couponsvc.api.handlers import handle, problem_response
from couponsvc.api.middleware import Authentication, RequestContext
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.services import Services
from couponsvc.programs.definitions import Conflict, Unknown
from couponsvc.programs.telling import GateAway, GateRebuilding

_HANDLED: Final = (
    ProblemAnswer,
    RequestValidationError,
    Unknown,
    Conflict,
    GateAway,
    GateRebuilding,
    RedisError,
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_NO_ROUTE: Final = (404, 405)
"""What the router says of a path that it has not, or has for other methods (the lane's is not its own)."""


def create_app(services: Services) -> FastAPI:
    """Make the application of one process; `services` stay its maker's to close."""
    app = FastAPI(
        title="couponsvc",
        version=version("couponsvc"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for routes in (
        routes_programs,
        routes_drops,
        routes_vouchers,
        routes_events,
        routes_subscriptions,
        routes_health,
    ):
        app.include_router(routes.router)
    app.mount(routes_health.ASSETS_PATH, routes_health.assets, name="docs-assets")
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    allowed = _AllowedMethods(app.openapi()["paths"])

    async def show_document(_request: Request) -> Response:
        return JSONResponse(app.openapi())

    async def refuse_http(request: Request, error: Exception) -> Response:
        methods = allowed.of(request.scope["path"])
        if methods and isinstance(error, HTTPException) and error.status_code in _NO_ROUTE:
            return problem_response(ProblemAnswer("method_not_allowed"), {"allow": methods})
        return await handle(request, error)

    app.add_route("/openapi.json", show_document, include_in_schema=False)
    app.add_exception_handler(HTTPException, refuse_http)
    for kind in _HANDLED:
        app.add_exception_handler(kind, handle)
    # The last one added is the outermost.
    app.add_middleware(Authentication, authenticator=services.authenticator)
    app.add_middleware(RequestContext)
    return app


class _AllowedMethods:
    """What the Allow header of a 405 must list: every method of the path (RFC 9110 §15.5.6)."""

    def __init__(self, paths: dict[str, dict[str, Any]]) -> None:
        self._methods: Final = [
            (
                re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))),
                ", ".join(sorted(m.upper() for m in item)),
            )
            for path, item in paths.items()
        ]

    def of(self, path: str) -> str:
        """As the header lists them; empty where there is nothing at this path."""
        return next((methods for pattern, methods in self._methods if pattern.fullmatch(path)), "")
