"""What runs, who may use it and what it cost, over HTTP: status, replicas, keys, usage, models and logs."""

from __future__ import annotations

import asyncio
import os
import secrets
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from stoker import ids
from stoker.admin import views
from stoker.admin.log_tail import MAX_LINES, LogTail, logs_of
from stoker.admin.operations import Operation, Query
from stoker.admin.reading import Body, is_true, read_body, since_us
from stoker.admin.services import AdminServices
from stoker.config.settings import Name
from stoker.errors import BadRequest, NotFound
from stoker.ledger.domain.reports import DIMENSIONS, Dimension, UsageQuery
from stoker.ledger.records import StoredKey
from stoker.models.catalogue import catalogue

_DEFAULT_WINDOW_S = 86_400.0
_DEFAULT_LINES = 200
_HINT_CHARS = 4
_CONFIGURED = "config:"


class KeyBody(Body):
    """Whose key, and what it may use; no deployments: all that the tenant may use."""

    name: Name
    tenant: Name = "default"
    deployments: tuple[Name, ...] = ()


class OtherRoutes:
    """Handlers; they hold nothing."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services

    async def get_status(self, _request: Request) -> Response:
        deployments = self._services.deployments
        about = {
            "version": version("stoker"),
            "pid": os.getpid(),
            "config_path": deployments.path,
            "environment": deployments.environment,
        }
        return JSONResponse({**about, **views.status_json(self._services.fleet.snapshot())})

    async def list_replicas(self, _request: Request) -> Response:
        return JSONResponse({"replicas": views.replicas_json(self._services.fleet.snapshot())})

    async def list_keys(self, _request: Request) -> Response:
        nothing = {"hint": None, "created_at": None, "revoked_at": None}
        listed: list[dict[str, Any]] = [
            {
                "key_id": f"{_CONFIGURED}{key.name}",
                "name": key.name,
                "tenant": key.tenant,
                "deployments": list(key.deployments),
                **nothing,
                "origin": "file",
            }
            for key in self._services.deployments.file_keys
        ]
        listed += [views.key_json(key) for key in await self._services.keys.list_keys()]
        if self._services.keyring.accepts_anyone:
            local = {"key_id": "local", "name": "local", "tenant": "local", "deployments": []}
            listed.append({**local, **nothing, "origin": "loopback"})
        return JSONResponse({"keys": listed})

    async def create_key(self, request: Request) -> Response:
        body = await read_body(request, KeyBody)
        known = {view.name for view in self._services.deployments.list()}
        if unknown := sorted(set(body.deployments) - known):
            raise BadRequest(f"there is no deployment {', '.join(unknown)}", param="deployments")
        secret = ids.new_api_key()
        key = StoredKey(
            key_id=f"key_{secrets.token_hex(8)}",
            name=body.name,
            tenant=body.tenant,
            sha256=sha256(secret.encode()).hexdigest(),
            hint=secret[-_HINT_CHARS:],
            deployments=body.deployments,
            created_at_us=self._now_us(),
            revoked_at_us=None,
        )
        await self._services.keys.add_key(key)
        await self._services.keyring.refresh()
        return JSONResponse({**views.key_json(key), "secret": secret}, 201, {"cache-control": "no-store"})

    async def revoke_key(self, request: Request) -> Response:
        key_id = request.path_params["key_id"]
        if key_id.startswith(_CONFIGURED):
            raise BadRequest(f"{key_id} comes from the configuration file", mend="remove it there and `stoker apply`")
        if not await self._services.keys.revoke_key(key_id, at_us=self._now_us()):
            raise NotFound(f"there is no live key {key_id[:80]!r}", mend="see `stoker keys list`")
        await self._services.keyring.refresh()
        return Response(status_code=204)

    async def get_usage(self, request: Request) -> Response:
        now = self._services.clock.now()
        asked = [part.strip() for part in request.query_params.get("by", "deployment").split(",") if part.strip()]
        group_by: list[Dimension] = [dimension for name in asked for dimension in DIMENSIONS if dimension == name]
        if len(group_by) != len(asked) or len(set(asked)) != len(asked):
            raise BadRequest("`by` takes each of these once: " + ", ".join(DIMENSIONS), param="by")
        query = UsageQuery(
            since_us=since_us(request.query_params.get("since"), now, default_s=_DEFAULT_WINDOW_S),
            until_us=since_us(request.query_params.get("until"), now, default_s=0.0),
            group_by=tuple(group_by),
        )
        return JSONResponse(views.usage_json(await self._services.usage.usage(query)))

    async def list_models(self, _request: Request) -> Response:
        entries = catalogue(self._services.deployments.settings.models)
        stored = await asyncio.to_thread(self._services.models.list)
        return JSONResponse({"models": views.models_json(entries, stored, self._services.fetches.all())})

    async def read_logs(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            lines = int(request.query_params.get("lines", _DEFAULT_LINES))
        except ValueError:
            raise BadRequest("`lines` must be a number", param="lines") from None
        is_deployment = any(view.name == name for view in self._services.deployments.list())
        engine_id = self._engine_of(name)
        logs = await asyncio.to_thread(logs_of, self._services.log_dir, engine_id)
        if not logs and not is_deployment:
            raise NotFound(f"there is no log of {name[:80]!r}", mend="see `stoker ps` for replicas and deployments")
        tail = LogTail(
            self._services.log_dir,
            engine_id,
            lines=lines,
            labels=engine_id not in logs,
            clock=self._services.clock,
        )
        follow = is_true(request.query_params.get("follow"))
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

        def is_over() -> bool:
            # A reader that follows must not hold up the server's end.
            return self._services.fleet.snapshot().is_draining

        return StreamingResponse(tail.read(follow=follow, is_over=is_over), media_type="text/plain", headers=headers)

    def _engine_of(self, name: str) -> str:
        """Return the engine id of a replica: an adopted one writes on under the name that it was started with."""
        for deployment in self._services.fleet.snapshot().deployments:
            for replica in deployment.replicas:
                if replica.replica_id == name:
                    return replica.engine_id
        return name

    def _now_us(self) -> int:
        return int(self._services.clock.now().timestamp() * 1_000_000)

    def operations(self) -> tuple[Operation, ...]:
        """Return this part of the table."""
        window = (
            Query("since", "24h, 7d or an ISO 8601 time; 24h"),
            Query("until", "likewise; now"),
            Query("by", f"one or several of {', '.join(DIMENSIONS)}, by comma; deployment"),
        )
        tail = (
            Query("follow", "true: go on with what is added"),
            Query("lines", f"how many of the last lines, at most {MAX_LINES}; {_DEFAULT_LINES}"),
        )
        return (
            Operation("GET", "/admin/status", self.get_status, "The server, its node and its deployments",
                      "`node`, `deployments`, `is_draining`, `keeper_problem`"),
            Operation("GET", "/admin/replicas", self.list_replicas, "List replicas", "`replicas`"),
            Operation("GET", "/admin/keys", self.list_keys, "List client keys, without their secrets", "`keys`"),
            Operation("POST", "/admin/keys", self.create_key, "Create a client key",
                      "the key with its `secret`, shown this once", 201, KeyBody, errors=((400, "wrong fields"),)),
            Operation("DELETE", "/admin/keys/{key_id}", self.revoke_key, "Revoke a client key", "revoked", 204,
                      errors=((404, "no such live key"),)),
            Operation("GET", "/admin/usage", self.get_usage, "Tokens, prices, waits and capacity from the ledger",
                      "`rows` and `capacity`", query=window, errors=((400, "a wrong window or dimension"),)),
            Operation("GET", "/admin/models", self.list_models, "What can be deployed and what is on this disk",
                      "`models`"),
            Operation("GET", "/admin/logs/{name}", self.read_logs, "The log of a replica or of a deployment's replicas",
                      "lines of text", query=tail, errors=((404, "no such log"),), content_type="text/plain"),
        )  # fmt: skip
