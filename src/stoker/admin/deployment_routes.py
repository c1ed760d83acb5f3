"""Deployments over HTTP: list, create, change, move, scale, delete, progress, apply and drift."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stoker.admin import views
from stoker.admin.operations import Operation, Query
from stoker.admin.reading import Body, author_of, if_match, read_body, read_json, split_settings
from stoker.admin.services import AdminServices
from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest, NotFound
from stoker.fleet.declaration import DeploymentView

_PATH = "/admin/deployments/{name}"
_SETTINGS_NOTE = "settings stand at the top level or under `settings`; `reason` goes to the history"
_REFUSED = (
    (400, "the settings are invalid; every problem is listed"),
    (403, "`command`, `exec:`, `file:` and the like come from the configuration file only"),
    (503, "the model cannot be had, or does not fit: with the arithmetic"),
)
_STALE = ((404, "no such deployment"), (412, "the ETag is not the present one"))


class MoveBody(Body):
    """To which tier, and how many there."""

    tier: Literal["serverless", "dedicated"]
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    tenants: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    reason: str = ""


class ScaleBody(Body):
    """`replicas` for dedicated; `min_replicas` and `max_replicas` for serverless."""

    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    reason: str = ""


class ApplyBody(Body):
    """Who wins where the file and runtime changes disagree."""

    mode: Literal["keep", "discard"] | None = None
    dry_run: bool = False
    reason: str = ""


class DeploymentRoutes:
    """Handlers; they hold nothing."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services
        self._deployments = services.deployments

    async def list_deployments(self, _request: Request) -> Response:
        snapshot = self._services.fleet.snapshot()
        views_ = [views.deployment_json(view, snapshot.deployment(view.name)) for view in self._deployments.list()]
        return JSONResponse({"deployments": views_})

    async def get_deployment(self, request: Request) -> Response:
        return self._answer(self._deployments.get(request.path_params["name"]))

    async def create_deployment(self, request: Request) -> Response:
        named, settings = split_settings(await read_json(request), also=("name",))
        name = named.get("name")
        if not isinstance(name, str) or not name:
            raise BadRequest("a deployment needs a `name`", param="name")
        view = await self._deployments.create(name, settings, author=author_of(request, named.get("reason", "")))
        answer = self._answer(view, 201)
        answer.headers["location"] = f"/admin/deployments/{view.name}"
        return answer

    async def patch_deployment(self, request: Request) -> Response:
        etag = if_match(request, is_required=True)
        named, patch = split_settings(await read_json(request))
        author = author_of(request, named.get("reason", ""))
        return self._answer(
            await self._deployments.patch(request.path_params["name"], patch, author=author, if_match=etag)
        )

    async def delete_deployment(self, request: Request) -> Response:
        etag = if_match(request, is_required=True)
        author = author_of(request, request.query_params.get("reason", ""))
        await self._deployments.delete(request.path_params["name"], author=author, if_match=etag)
        return Response(status_code=204)

    async def move_deployment(self, request: Request) -> Response:
        etag = if_match(request, is_required=False)
        body = await read_body(request, MoveBody)
        fields = body.model_dump(mode="json", exclude={"tier", "reason"}, exclude_none=True)
        author = author_of(request, body.reason)
        view = await self._deployments.move(
            request.path_params["name"], body.tier, author=author, if_match=etag, **fields
        )
        return self._answer(view)

    async def scale_deployment(self, request: Request) -> Response:
        etag = if_match(request, is_required=False)
        body = await read_body(request, ScaleBody)
        view = await self._deployments.scale(
            request.path_params["name"],
            author=author_of(request, body.reason),
            replicas=body.replicas,
            min_replicas=body.min_replicas,
            max_replicas=body.max_replicas,
            if_match=etag,
        )
        return self._answer(view)

    async def get_progress(self, request: Request) -> Response:
        view = self._deployments.get(request.path_params["name"])
        snapshot = self._services.fleet.snapshot().deployment(view.name)
        fetch = self._services.fetches.all().get(view.settings.model)
        return JSONResponse(views.progress_json(view.name, view.settings.model, snapshot, fetch))

    async def apply_configuration(self, request: Request) -> Response:
        body = await read_body(request, ApplyBody)
        self._need_a_file()
        author = author_of(request, body.reason)
        applied = await self._deployments.apply(body.mode, author=author, is_dry_run=body.dry_run)
        return JSONResponse(views.applied_json(applied))

    async def get_drift(self, _request: Request) -> Response:
        drift = await self._deployments.drift()
        return JSONResponse(views.drift_json(drift, path=self._deployments.path))

    def _need_a_file(self) -> None:
        if self._deployments.path is None:
            raise NotFound(
                "this server runs with the embedded default and has no file to apply",
                mend="start it with `stoker up --config stoker.yaml`",
            )

    def _answer(self, view: DeploymentView, status: int = 200) -> JSONResponse:
        snapshot = self._services.fleet.snapshot().deployment(view.name)
        headers = {"etag": f'"{view.etag}"'}
        return JSONResponse(views.deployment_json(view, snapshot), status, headers)

    def operations(self) -> tuple[Operation, ...]:
        """Return this part of the table."""
        settings = DeploymentSettings.model_json_schema(ref_template="#/components/schemas/{model}")
        settings.pop("$defs", None)
        fields = {**settings["properties"], "reason": {"type": "string"}}
        patch = {"type": "object", "description": f"RFC 7386 merge patch; {_SETTINGS_NOTE}", "properties": fields}
        create = {
            "type": "object",
            "description": _SETTINGS_NOTE,
            "required": ["name"],
            "properties": {"name": {"type": "string"}, **fields},
        }
        return (
            Operation("GET", "/admin/deployments", self.list_deployments, "List deployments",
                      "`deployments`: settings, ETag, override and status of each"),
            Operation("POST", "/admin/deployments", self.create_deployment, "Create a deployment",
                      "the deployment, with its ETag", 201, create, errors=(*_REFUSED, (409, "the name is taken"))),
            Operation("GET", _PATH, self.get_deployment, "Read a deployment", "the deployment, with its ETag",
                      errors=((404, "no such deployment"),)),
            Operation("PATCH", _PATH, self.patch_deployment, "Change a deployment", "the deployment, with its ETag",
                      body=patch, errors=(*_REFUSED, *_STALE, (428, "If-Match is missing")),
                      takes_if_match="required"),
            Operation("DELETE", _PATH, self.delete_deployment, "Delete a deployment; streams in flight go on",
                      "deleted", 204, query=(Query("reason", "for the history"),),
                      errors=(*_STALE, (428, "If-Match is missing")), takes_if_match="required"),
            Operation("POST", f"{_PATH}/move", self.move_deployment,
                      "Move a deployment to a tier behind its name, make before break",
                      "the deployment, with its ETag", body=MoveBody, errors=(*_REFUSED, *_STALE),
                      takes_if_match="optional"),
            Operation("POST", f"{_PATH}/scale", self.scale_deployment, "Change the number of replicas",
                      "the deployment, with its ETag", body=ScaleBody, errors=(*_REFUSED, *_STALE),
                      takes_if_match="optional"),
            Operation("GET", f"{_PATH}/progress", self.get_progress, "How far a deployment is on its way",
                      "`stage`, `is_live`, `eta_s`, `fetch`", errors=((404, "no such deployment"),)),
            Operation("POST", "/admin/apply", self.apply_configuration,
                      "Read the configuration file again and take the three-way step to it",
                      "`changes`, `conflicts`, `dropped`, `kept`, `at_next_start`", body=ApplyBody,
                      errors=(*_REFUSED, (404, "there is no file"), (409, "conflicts; nothing was changed"))),
            Operation("GET", "/admin/config/diff", self.get_drift, "How the file on disk and what runs differ",
                      "`changes` (before: the file; after: what runs), `unapplied`, `overrides`",
                      errors=((400, "the file is invalid now"),)),
        )  # fmt: skip
