"""Any OpenAI-compatible server: a command that the configuration names, or one that somebody else runs at a URL."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest
from stoker.fleet.engines.health import ask_health
from stoker.fleet.engines.routes import PATHS
from stoker.fleet.keeper.shim import under_shim
from stoker.fleet.ports import Endpoint, Health, LaunchRequest, LaunchSpec, MemoryNeed, SlotUse, Surface
from stoker.models.files import ModelFile

_SURFACES: frozenset[Surface] = frozenset({"chat.completions", "completions", "embeddings", "responses", "messages"})
ENGINE_CONTROL = (
    "id_slot", "cache_prompt", "cache_salt", "kv_transfer_params", "priority", "chat_template", "lora",
    "n_cache_reuse", "slot_id", "documents", "mm_processor_kwargs", "vllm_xargs",
)  # fmt: skip
"""Fields that steer an engine rather than describe a request; a client's values of them never reach it."""
_TEMPLATE_CONTROL = ("chat_template", "tokenize")
"""Within `chat_template_kwargs`, which otherwise fill the model's own template (`enable_thinking`), and pass."""


class OpenAIProcess:
    """The `Engine` adapter for `engine.kind: openai`."""

    kind = "openai"

    def surfaces(self, settings: DeploymentSettings, model: ModelFile | None) -> frozenset[Surface]:  # noqa: ARG002
        """Everything of OpenAI's; what the server lacks it refuses itself. A pooling deployment embeds only."""
        return frozenset({"embeddings"}) if settings.engine.pooling is not None else _SURFACES

    def memory_need(self, settings: DeploymentSettings, model: ModelFile | None) -> MemoryNeed:
        """Return the declared memory; nothing is known of a stranger's process otherwise, and a URL needs none."""
        if settings.engine.command is None:
            return MemoryNeed(0, "somebody else's server = 0 MiB")
        if settings.memory is not None:
            return MemoryNeed(settings.memory, f"declared memory {settings.memory // 2**20} MiB")
        weights_bytes = 0 if model is None else model.size_bytes
        return MemoryNeed(weights_bytes, f"weights {weights_bytes // 2**20} MiB (declare `memory` for the rest)")

    def plan_launch(self, request: LaunchRequest) -> LaunchSpec | Endpoint:
        """Fill in the command's placeholders, or read the URL.

        Raises:
            BadRequest: a URL that is not plain HTTP, or a placeholder that does not exist.
        """
        engine = request.settings.engine
        if engine.command is None:
            return endpoint_of(engine.url, health_path=engine.health_path)
        return launch_command(request, engine.command, health_path=engine.health_path)

    async def health(self, endpoint: Endpoint) -> Health:
        """Ask the configured health path."""
        return await ask_health(endpoint, endpoint.health_path)

    def prepare(self, surface: Surface, body: dict[str, Any], use: SlotUse) -> None:  # noqa: ARG002
        """Drop what would steer the engine."""
        for name in ENGINE_CONTROL:
            body.pop(name, None)
        filling = body.get("chat_template_kwargs")
        if isinstance(filling, dict):
            body["chat_template_kwargs"] = {k: v for k, v in filling.items() if k not in _TEMPLATE_CONTROL}

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,  # noqa: ARG002
        use: SlotUse,  # noqa: ARG002
        surface: Surface,  # noqa: ARG002
        body: dict[str, Any],  # noqa: ARG002
        last_event: bytes,  # noqa: ARG002
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        """Close and return None: nothing of the kind is common to all such servers."""
        close()
        return None

    def path(self, surface: Surface) -> str:
        """Return OpenAI's own routes."""
        return PATHS[surface]


def endpoint_of(url: str | None, *, health_path: str = "/health") -> Endpoint:
    """Read `http://host:port/base`.

    Raises:
        BadRequest: anything else; encrypted providers are not engines.
    """
    parts = urlsplit(url or "")
    if parts.scheme != "http" or not parts.hostname:
        raise BadRequest(f"engine.url {url!r} is not http://host:port", mend="engines are reached by plain HTTP only")
    return Endpoint(
        host=parts.hostname, port=parts.port or 80, base_path=parts.path.rstrip("/"), health_path=health_path
    )


def launch_command(request: LaunchRequest, command: tuple[str, ...], *, health_path: str) -> LaunchSpec:
    """Return the launch of a user's command under a shim that ends its whole process tree.

    Raises:
        BadRequest: an unknown placeholder.
    """
    socket_path = str(request.run_dir / f"{request.replica_id[-8:]}.sock")
    uses_socket = any("{socket}" in word for word in command)
    port = 0 if uses_socket else free_port()
    values = {
        "model": str(request.model.path) if request.model else "",
        "port": str(port),
        "socket": socket_path,
        "name": request.deployment,
    }
    try:
        argv = tuple(word.format_map(values) for word in command)
    except (KeyError, ValueError, IndexError) as error:
        raise BadRequest(
            f"engine.command has an unknown placeholder: {error}", mend=f"known are {{{'}, {'.join(values)}}}"
        ) from error
    endpoint = (
        Endpoint(socket_path=socket_path, health_path=health_path)
        if uses_socket
        else Endpoint(host="127.0.0.1", port=port, health_path=health_path)
    )
    return LaunchSpec(
        replica_id=request.replica_id,
        argv=under_shim(argv),
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **request.settings.engine.env},
        cwd=str(request.run_dir),
        log_path=str(request.log_dir / f"{request.replica_id}.log"),
        endpoint=endpoint,
    )


def free_port() -> int:
    """Return a loopback port that is free now; another process may still take it, and then the start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
