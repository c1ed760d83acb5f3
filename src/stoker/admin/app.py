"""The `/admin` application: the token before everything, then the table of operations. Touches what it is given."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stoker.admin.deployment_routes import DeploymentRoutes
from stoker.admin.envelope import error_response
from stoker.admin.operations import Operation, openapi, routes
from stoker.admin.other_routes import OtherRoutes
from stoker.admin.services import AdminServices, FetchBoard, FleetView, KeyringView, ModelShelf
from stoker.clock import Clock
from stoker.config.settings import DeploymentSettings
from stoker.errors import StokerError, Unauthenticated
from stoker.fleet.deployments import Deployments
from stoker.gateway.errors import MethodNotAllowed, UnknownRoute
from stoker.ledger.ports import KeyStore, UsageReader

log = logging.getLogger(__name__)

_BEARER = b"bearer "


def build_admin(
    *,
    deployments: Deployments,
    fleet: FleetView,
    usage: UsageReader,
    keys: KeyStore,
    keyring: KeyringView,
    models: ModelShelf,
    token: str,
    clock: Clock,
    log_dir: Path,
    fetches: FetchBoard | None = None,
) -> ASGIApp:
    """Return the application. It expects whole paths (`/admin/…`), whoever mounts it.

    Args:
        token: the admin token; every request must carry it, also on loopback.
        log_dir: one `<engine id>.log` for each engine.
        fetches: the downloads under way, shown as progress; None: none are shown.
    """
    if not token:
        raise ValueError("the admin token must not be empty")
    services = AdminServices(
        deployments,
        fleet,
        usage,
        keys,
        keyring,
        models,
        clock,
        log_dir,
        fetches if fetches is not None else FetchBoard(),
    )
    table: list[Operation] = [*DeploymentRoutes(services).operations(), *OtherRoutes(services).operations()]

    async def get_openapi(_request: Request) -> Response:
        return JSONResponse(document)

    described = Operation("GET", "/admin/openapi.json", get_openapi, "This document", "OpenAPI 3.1")
    table.append(described)
    schemas: dict[str, Any] = DeploymentSettings.model_json_schema(ref_template="#/components/schemas/{model}")["$defs"]
    document = openapi(table, version=version("stoker"), schemas=schemas)
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        StokerError: _said,
        HTTPException: _routed,
        Exception: _unforeseen,
    }
    app = Starlette(routes=routes(table), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _TokenFirst(app, token)


class _TokenFirst:
    """Lets nothing through without the token, not even the question which routes there are."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._digest = sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if not self._is_ours(scope):
            error = Unauthenticated(
                "/admin needs the admin token, also on this machine",
                mend="send `Authorization: Bearer <token>`; the token stands in `admin-token` in the state directory",
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        presented = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(presented) != 1 or not presented[0].lower().startswith(_BEARER):
            return False
        # Digests are of one length, so that comparing them tells nothing about the token's length either.
        digest = sha256(presented[0][len(_BEARER) :].strip()).digest()
        return hmac.compare_digest(digest, self._digest)


async def _said(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StokerError)
    return error_response(error)


async def _routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        answer = error_response(MethodNotAllowed(f"{request.method} is not for {request.url.path[:200]}"))
        answer.headers["allow"] = (error.headers or {}).get("Allow", "")
        return answer
    mend = "GET /admin/openapi.json lists the routes"
    return error_response(UnknownRoute(f"there is no {request.method} {request.url.path[:200]}", mend=mend))


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("admin.failed", extra={"path": request.url.path}, exc_info=error)
    return error_response(StokerError("internal"))
