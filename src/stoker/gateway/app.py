"""The gateway as one ASGI application: guards, routes, and everything but inference. Hands `/admin` on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

import orjson

from stoker.clock import Clock
from stoker.config.settings import ServerSettings
from stoker.errors import BadRequest, StokerError
from stoker.fleet.ports import DeploymentFacts, Directory, SlotLeases
from stoker.gateway.answers import send_error
from stoker.gateway.auth import Keyring
from stoker.gateway.call import Send
from stoker.gateway.domain.origins import HostPolicy
from stoker.gateway.errors import ForeignHost, ForeignOrigin, MethodNotAllowed, UnknownRoute
from stoker.gateway.headers import JSON
from stoker.gateway.inference import Inference
from stoker.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from stoker.gateway.openai.request import Receive
from stoker.gateway.openai.surfaces import PATHS
from stoker.gateway.pool import UpstreamPool
from stoker.ids import new_request_id
from stoker.ledger.ports import Recorder

Scope = MutableMapping[str, Any]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_MODELS: Final = "/v1/models"
_WS_REFUSED: Final = {"type": "websocket.close", "code": 1008, "reason": "foreign host or origin"}


class Gateway:
    """The application; `drain` before the server stops, `close` after it has."""

    def __init__(
        self,
        *,
        inference: Inference,
        pool: UpstreamPool,
        keyring: Keyring,
        clock: Clock,
        hosts: HostPolicy,
        metrics: GatewayMetrics,
        admin: ASGIApp,
        why_not_ready: Callable[[], str | None],
    ) -> None:
        self._inference = inference
        self._pool = pool
        self._keyring = keyring
        self._clock = clock
        self._hosts = hosts
        self._metrics = metrics
        self._admin = admin
        self._why_not_ready = why_not_ready
        self._is_draining = False

    def drain(self) -> None:
        """Answer `/ready` with 503 from here on, so that balancers look elsewhere."""
        self._is_draining = True

    def close(self) -> None:
        """Close idle connections to engines."""
        self._pool.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await _live(receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        refusal = self._refusal(headers)
        if kind == "websocket":
            if refusal is None and scope["path"].startswith("/admin"):
                await self._admin(scope, receive, send)
            else:
                await receive()
                await send(dict(_WS_REFUSED))
            return
        if refusal is not None:
            await self._refuse(send, refusal)
            return
        path: str = scope["path"]
        surface = PATHS.get(path)
        if surface is not None and scope["method"] == "POST":
            await self._inference.handle(surface, headers, scope, receive, send)
        elif path == "/admin" or path.startswith("/admin/"):
            await self._admin(scope, receive, send)
        else:
            try:
                found = self._look_up(path, scope["method"], headers, is_surface=surface is not None)
            except StokerError as error:
                await self._refuse(send, error)
                return
            await _answer(send, *found)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> StokerError | None:
        host = headers.get(b"host")
        if host is None:
            return BadRequest("the Host header is missing")
        if not self._hosts.allows_host(host):
            return ForeignHost(
                f"this endpoint does not answer to {host[:128].decode('latin-1')!r}",
                mend="name it in server.allowed_hosts if it should",
            )
        origin = headers.get(b"origin")
        if origin is not None and not self._hosts.allows_origin(origin, host):
            return ForeignOrigin(f"pages of {origin[:128].decode('latin-1')!r} may not call this endpoint")
        return None

    def _look_up(
        self, path: str, method: str, headers: Mapping[bytes, bytes], *, is_surface: bool
    ) -> tuple[int, bytes, bytes]:
        """Answer a read: status, content type, body. Raises `StokerError`."""
        is_known = path in {"/health", "/ready", "/metrics", _MODELS} or path.startswith(_MODELS + "/")
        if is_surface or (is_known and method not in {"GET", "HEAD"}):
            raise MethodNotAllowed(f"{path} takes {'POST' if is_surface else 'GET'}, not {method}")
        if path == "/health":
            return 200, JSON[1], b'{"status":"ok"}'
        if path == "/ready":
            reason = "draining" if self._is_draining else self._why_not_ready()
            return (200, JSON[1], b'{"status":"ready"}') if reason is None else (
                503, JSON[1], orjson.dumps({"status": "not ready", "reason": reason})
            )  # fmt: skip
        if path == "/metrics":
            self._keyring.identify(headers)
            return 200, CONTENT_TYPE, self._metrics.exposition()
        if is_known:
            return 200, JSON[1], self._models(path, headers)
        raise UnknownRoute(f"there is nothing at {path[:256]}", mend="see /v1/models, /health, /ready, /metrics")

    def _models(self, path: str, headers: Mapping[bytes, bytes]) -> bytes:
        principal = self._keyring.identify(headers)
        visible = self._inference.visible(principal)
        if path == _MODELS or path == _MODELS + "/":
            return orjson.dumps({"object": "list", "data": [_model(facts) for facts in visible]})
        name = unquote(path.removeprefix(_MODELS + "/"))
        for facts in visible:
            if facts.name == name:
                return orjson.dumps(_model(facts))
        raise self._inference.unknown_model(principal, name)

    async def _refuse(self, send: Send, error: StokerError) -> None:
        self._metrics.count_turned_away(error.code)
        await send_error(send, error, new_request_id(int(self._clock.now().timestamp() * 1000)))


def _model(facts: DeploymentFacts) -> dict[str, Any]:
    return {
        "id": facts.name,
        "object": "model",
        "created": facts.created_at_us // 1_000_000,
        "owned_by": "stoker",
        "x_stoker": {
            "model": facts.model,
            "tier": facts.tier,
            "surfaces": sorted(facts.surfaces),
            "context_tokens": facts.context_tokens,
        },
    }


async def _answer(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


def build_app(
    *,
    leases: SlotLeases,
    directory: Directory,
    recorder: Recorder,
    keyring: Keyring,
    clock: Clock,
    settings: ServerSettings,
    metrics: GatewayMetrics,
    admin: ASGIApp,
    why_not_ready: Callable[[], str | None] = lambda: None,
) -> Gateway:
    """Put the gateway together.

    Args:
        admin: gets every request under `/admin` whose Host and Origin passed; it does its own authentication.
        why_not_ready: reason for `/ready` to answer 503, None when ready.
    """
    pool = UpstreamPool()
    inference = Inference(
        leases=leases,
        directory=directory,
        recorder=recorder,
        keyring=keyring,
        clock=clock,
        settings=settings,
        metrics=metrics,
        pool=pool,
    )
    return Gateway(
        inference=inference,
        pool=pool,
        keyring=keyring,
        clock=clock,
        hosts=HostPolicy(settings.host, settings.allowed_hosts),
        metrics=metrics,
        admin=admin,
        why_not_ready=why_not_ready,
    )
