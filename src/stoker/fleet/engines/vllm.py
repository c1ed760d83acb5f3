"""vLLM as a profile of any OpenAI-compatible process; documented, not yet run on real hardware.

What is known of it stands in `contracts/vllm.json`, with the upstream files that it was read from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest, EngineFailed
from stoker.fleet.engines.openai_process import OpenAIProcess, endpoint_of, launch_command
from stoker.fleet.ports import Endpoint, Health, LaunchRequest, LaunchSpec, MemoryNeed, SlotUse, Surface
from stoker.models.files import ModelFile

_REACHING_FLAGS = frozenset(
    {
        "allowed_local_media_path", "allowed_media_domains", "api_key", "chat_template", "host", "kv_transfer_config",
        "middleware", "port", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "tool_parser_plugin", "trust_remote_code",
        "worker_cls", "worker_extension_cls",
    }
)  # fmt: skip
"""Ways to code, files and hosts; `engine.args` may come through the API, which must not open them."""


@cache
def contract() -> dict[str, Any]:
    """Return the contract file: routes, flags and fields that this adapter relies on."""
    text = files("stoker.fleet.engines").joinpath("contracts/vllm.json").read_text(encoding="utf-8")
    read: dict[str, Any] = json.loads(text)
    return read


class Vllm:
    """The `Engine` adapter for `engine.kind: vllm`."""

    kind = "vllm"

    def __init__(self) -> None:
        self._process = OpenAIProcess()

    def surfaces(self, settings: DeploymentSettings, model: ModelFile | None) -> frozenset[Surface]:
        """What the contract lists; a pooling deployment embeds only."""
        return self._process.surfaces(settings, model)

    def memory_need(self, settings: DeploymentSettings, model: ModelFile | None) -> MemoryNeed:
        """Host memory as declared; the weights live on the GPU."""
        return self._process.memory_need(settings, model)

    def plan_launch(self, request: LaunchRequest) -> LaunchSpec | Endpoint:
        """Write `vllm serve`, on a UNIX socket, from the deployment's fields and `engine.args`.

        Raises:
            BadRequest: an argument that Stoker sets itself.
            EngineFailed: no `vllm` on this machine.
        """
        engine = request.settings.engine
        if engine.url is not None:
            return endpoint_of(engine.url, health_path=contract()["routes"]["health"])
        program = engine.command or (self._program(engine.binary), "serve", self._weights(request))
        flags = contract()["flags"]
        line = [*program, flags["socket"], "{socket}", flags["served_model_name"], request.deployment]
        # Without it the usage does not say what came from the prefix cache.
        line += [flags["max_num_seqs"], str(engine.slots), flags["cached_tokens_in_usage"]]
        if engine.context_tokens is not None:
            line += [flags["max_model_len"], str(engine.context_tokens)]
        for name, value in engine.args.items():
            if name == "model":
                continue
            if name.replace("-", "_") in _REACHING_FLAGS:
                raise BadRequest(
                    f"engine.args.{name} would reach files, programs or hosts", mend="write it into engine.command"
                )
            flag = f"--{name.replace('_', '-')}"
            if flag in flags.values():
                raise BadRequest(f"engine.args.{name} is set by Stoker itself", mend="use the deployment's own fields")
            if value is True:
                line.append(flag)
            elif value is False:
                line.append(f"--no-{flag[2:]}")
            else:
                line += [flag, str(value)]
        return launch_command(request, tuple(line), health_path=contract()["routes"]["health"])

    async def health(self, endpoint: Endpoint) -> Health:
        """Ask the contract's health route."""
        return await self._process.health(endpoint)

    def prepare(self, surface: Surface, body: dict[str, Any], use: SlotUse) -> None:
        """Drop what would steer the engine, and key its one prefix cache by tenant."""
        self._process.prepare(surface, body, use)
        for name in contract()["control_fields"]:
            body.pop(name, None)
        if surface in contract()["cache_salt_surfaces"]:
            body[contract()["fields"]["cache_salt"]] = use.tenant_salt

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,
        use: SlotUse,
        surface: Surface,
        body: dict[str, Any],
        last_event: bytes,
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        """Return None: vLLM does not tell of a request that was aborted."""
        return await self._process.usage_after_cancel(endpoint, use, surface, body, last_event, close)

    def path(self, surface: Surface) -> str:
        """Return OpenAI's own routes."""
        return self._process.path(surface)

    def _program(self, binary: str | None) -> str:
        program = shutil.which(binary or "vllm")
        if program is None:
            raise EngineFailed("vLLM is not installed on this machine", mend="install it, or name engine.command")
        return program

    def _weights(self, request: LaunchRequest) -> str:
        """What `vllm serve` loads: `engine.args.model` (a hub repository or a folder), or the verified file."""
        named = request.settings.engine.args.get("model")
        if named is not None:
            return str(named)
        if request.model is None:
            raise BadRequest(
                f"vLLM does not know what to load for {request.deployment}",
                mend="name the repository or the folder as `engine.args.model`",
            )
        return str(request.model.path)
