"""llama.cpp: the embedded wheel's native server, or any `llama-server`. Reads where the wheel lies."""

from __future__ import annotations

import difflib
import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest, EngineFailed, ModelUnavailable
from stoker.fleet.engines.health import ask_health
from stoker.fleet.engines.llama_cpp_cancel import TAG, count_after_cancel
from stoker.fleet.engines.llama_cpp_memory import memory_need
from stoker.fleet.engines.routes import PATHS
from stoker.fleet.ports import Endpoint, Health, LaunchRequest, LaunchSpec, MemoryNeed, SlotUse, Surface
from stoker.models.files import ModelFile

DEFAULT_CONTEXT_TOKENS = 4096
"""For models that were trained for more: the KV cache is reserved at start, and its pages cost start time."""

_LAUNCHER = Path(__file__).with_name("llama_cpp_launcher.py")
_SOCKET_PATH_LIMIT = 107  # sun_path without its terminating zero; unix(7)

_POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3}  # llama.h, enum llama_pooling_type

_ENGINE_CONTROL = (
    # Which slot serves, and what of it is reused: these decide whose content is seen.
    "id_slot", "cache_prompt", "n_cache_reuse", "slot_id", "n_cmpl", "n_discard", "n_keep",
    # Who is served first, what is loaded, and how it is computed.
    "priority", "lora", "kv_transfer_params", "cache_salt", "backend_sampling", "sse_ping_interval",
    # A program that the engine would run on the client's behalf. `chat_template_kwargs` only fills the model's own
    # template (`enable_thinking`) and passes.
    "chat_template",
    # What the server itself hands from its chat layer to its sampler; a client's would be taken for it.
    "grammar_type", "grammar_lazy", "grammar_triggers", "preserved_tokens", "chat_format", "chat_parser",
    "generation_prompt", "thinking_forced_open",
    # Answers that leave out the usage, or show what the engine does.
    "response_fields", "verbose", "__verbose", "return_progress",
)  # fmt: skip
"""Source: llama.cpp tools/server/server-schema.cpp and server-common.cpp; unknown fields are copied to the sampler."""

# Measured with SmolLM2 on two cores (docs/benchmarks.md): warm-up costs 170 ms of a 480-ms start, fitting 190 ms.
_COLD_START_FLAGS = {"warmup": False, "fit_params": False}
# Prompt caches outside the slots would cross tenants; within a slot, `prepare` says each time what may be reused, and
# a route that does not pass that on (`/v1/messages`) reuses nothing.
_ISOLATION_FLAGS = {"cache_ram_mib": 0, "cache_idle_slots": False, "cache_prompt": False, "ui": False}
# A request is only stopped between two batches, and those of other slots wait for it. The work is done in micro-batches
# of 512 either way.
_BATCH_FLAGS = {"n_batch": 512}
_OWN_FLAGS = frozenset(
    {
        "model", "model.path", "model_alias", "hostnames", "port", "n_parallel", "n_ctx", "api_keys", "api_prefix",
        "ssl_file_key", "ssl_file_cert", "ctx_shift", "endpoint_slots", "cache_prompt", "cache_ram_mib",
        "cache_idle_slots", "embedding", "pooling_type",
    }
)  # fmt: skip
"""What the deployment's own fields say, or what keeps tenants and counts apart."""
_REACHING_FLAGS = frozenset(
    {
        "api_key", "api_key_file", "chat_template_file", "context_files", "cors_origins", "grammar_file", "hf_file",
        "hf_repo", "hf_token", "host", "imat_dat", "in_files", "log_file", "logits_file", "logits_output_dir", "lora",
        "lora_adapters", "mcp_servers_config", "mcp_servers_json", "media_path", "mmproj", "model_url", "models_dir",
        "models_preset", "models_preset_hf", "out_file", "path", "path_prompt_cache", "path_prompts_log_dir",
        "prompt_cache", "prompt_file", "public_path", "reuse_port", "rpc", "server_tools", "server_tools_runtime",
        "slot_save_path", "tts_speaker_file", "ui_config_json", "ui_mcp_proxy", "video_ffmpeg_bin_dir",
    }
)  # fmt: skip
"""Ways to files, programs and other hosts; `engine.args` may come through the API, which must not open them."""


class LlamaCpp:
    """The `Engine` adapter for `engine.kind: llama.cpp`.

    The wheel's server (xllamacpp 2026.10.11549) offers `/v1/chat/completions`, `/v1/completions`, `/v1/responses`,
    `/v1/messages`, `/infill`, `/tokenize` and their `input_tokens` and `count_tokens` on every model, `/v1/embeddings`
    with pooling only. `id_slot` and `cache_prompt` are honoured by all that generate but `/v1/messages`, which drops
    them with every field that it does not know; so that one is offered where there is a single slot.
    """

    kind = "llama.cpp"

    def surfaces(self, settings: DeploymentSettings, model: ModelFile | None) -> frozenset[Surface]:
        """A pooling deployment embeds; every other one generates, chats where the model has a template.

        Whether a model can `infill` stands in its vocabulary; the engine says it, with 501, when it cannot.
        """
        if settings.engine.pooling is not None:
            return frozenset({"embeddings", "tokenize"})
        offered: set[Surface] = {"completions", "infill", "tokenize"}
        if model is None or model.has_chat_template:
            offered |= {"chat.completions", "responses"}
            if settings.engine.slots == 1:
                # It is served by whichever slot is free, and whose content is left there would not be known.
                offered.add("messages")
        return frozenset(offered)

    def memory_need(self, settings: DeploymentSettings, model: ModelFile | None) -> MemoryNeed:
        """See `llama_cpp_memory`."""
        if model is None:
            raise ModelUnavailable("llama.cpp needs a model file", mend="name a model with a source")
        return memory_need(settings, model, context_tokens=context_tokens(settings, model))

    def plan_launch(self, request: LaunchRequest) -> LaunchSpec | Endpoint:
        """Write the launch line of the embedded server, or of `engine.binary`.

        Raises:
            BadRequest: an `engine.args` that the engine does not have.
            EngineFailed: neither the wheel nor the binary is on this machine.
        """
        engine = request.settings.engine
        if request.model is None:
            raise ModelUnavailable("llama.cpp needs a model file", mend="name a model with a source")
        socket_path = str(request.run_dir / f"{request.replica_id[-8:]}.sock")
        if len(socket_path) > _SOCKET_PATH_LIMIT:
            raise EngineFailed(
                f"the socket path {socket_path} is longer than {_SOCKET_PATH_LIMIT} characters",
                mend="choose a state directory with a shorter path",
            )
        endpoint = Endpoint(socket_path=socket_path)
        flags = self._flags(request)
        if engine.binary is None:
            argv = _embedded(str(request.model.path), socket_path, flags, engine.args)
        else:
            argv = _llama_server(engine.binary, str(request.model.path), socket_path, flags, engine.args)
        return LaunchSpec(
            replica_id=request.replica_id,
            argv=argv,
            # Threads that spin between batches would take the cores of the replicas beside them.
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_WAIT_POLICY": "passive", "LANG": "C.UTF-8", **engine.env},
            cwd=str(request.run_dir),
            log_path=str(request.log_dir / f"{request.replica_id}.log"),
            endpoint=endpoint,
        )

    async def health(self, endpoint: Endpoint) -> Health:
        """Ask `/health`: 503 while the model loads."""
        return await ask_health(endpoint, "/health")

    def prepare(self, surface: Surface, body: dict[str, Any], use: SlotUse) -> None:
        """Pin the request to its slot, and reuse the slot's prefix only where it is the tenant's own.

        Raises:
            BadRequest: more than one answer is asked for; each would take a slot that is not the request's.
        """
        if body.get("n") not in {None, 1}:
            raise BadRequest(
                f"n={body['n']} answers at once are not offered", mend="send that many requests", param="n"
            )
        for name in _ENGINE_CONTROL:
            body.pop(name, None)
        if surface in {"embeddings", "tokenize"}:
            return
        body["id_slot"] = use.slot_index
        body["cache_prompt"] = use.may_reuse_prefix
        body[TAG] = random.getrandbits(31)
        if body.get("stream") is True:
            # So that a stream that is cut still tells what was computed for it.
            body["timings_per_token"] = True

    def path(self, surface: Surface) -> str:
        """Return the route of the engine's own server."""
        return PATHS[surface]

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,
        use: SlotUse,
        surface: Surface,
        body: dict[str, Any],
        last_event: bytes,
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        """End a request and return what it came to; see `llama_cpp_cancel`."""
        return await count_after_cancel(endpoint, use.slot_index, surface, body, last_event, close)

    def _flags(self, request: LaunchRequest) -> dict[str, Any]:
        engine = request.settings.engine
        assert request.model is not None
        flags: dict[str, Any] = {
            **_COLD_START_FLAGS,
            **_ISOLATION_FLAGS,
            **_BATCH_FLAGS,
            # llama.cpp divides its context among the slots.
            "n_ctx": context_tokens(request.settings, request.model) * engine.slots,
            "n_parallel": engine.slots,
            "model_alias": [request.deployment],
            "cpuparams.n_threads": request.threads,
            "cpuparams_batch.n_threads": request.threads,
            "endpoint_metrics": True,
            "endpoint_slots": True,
        }
        if engine.pooling is not None:
            flags |= {"embedding": True, "pooling_type": _POOLING[engine.pooling]}
        return flags


def context_tokens(settings: DeploymentSettings, model: ModelFile) -> int:
    """Return the context of one slot, in tokens: as declared, else what the model was trained for, bounded."""
    declared = settings.engine.context_tokens
    return declared or min(model.context_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)


@cache
def _wheel_folder() -> str:
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise EngineFailed(
            "the embedded engine is not installed (no module xllamacpp)",
            mend="run `make install`, or name a llama-server with engine.binary",
        )
    return str(Path(found.origin).parents[1])


@cache
def _known_flags() -> frozenset[str]:
    import xllamacpp  # noqa: PLC0415 - 75 ms, paid only by those who name flags of the engine

    params = xllamacpp.CommonParams()
    names = set()
    for name in _attributes(params):
        names.add(name)
        held = getattr(params, name)
        if type(held).__module__.startswith("xllamacpp") and not isinstance(held, int):
            names |= {f"{name}.{inner}" for inner in _attributes(held)}
    return frozenset(names)


def _attributes(holder: object) -> list[str]:
    return [name for name in dir(holder) if not name.startswith("_") and not callable(getattr(holder, name))]


def _embedded(model: str, socket_path: str, flags: dict[str, Any], chosen: dict[str, Any]) -> tuple[str, ...]:
    folder = _wheel_folder()
    for name in chosen:
        _check_allowed(name)
        _check_known(name)
    order = {"import_path": folder, "model": model, "socket": socket_path, "params": {**flags, **chosen}}
    return (sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(order))


def _check_allowed(name: str) -> None:
    flag = name.replace("-", "_")
    if flag in _OWN_FLAGS:
        raise BadRequest(f"engine.args.{name} is set by Stoker itself", mend="use the deployment's own fields instead")
    if flag.split(".")[0] in _REACHING_FLAGS:
        raise BadRequest(
            f"engine.args.{name} would reach files, programs or hosts", mend="run such an engine as `kind: openai`"
        )


def _check_known(name: str) -> None:
    known = _known_flags()
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), 3)
        raise BadRequest(
            f"engine.args.{name} is not a parameter of llama.cpp",
            mend=f"did you mean {', '.join(near)}?" if near else "its names are the attributes of CommonParams",
        )


def _llama_server(
    binary: str, model: str, socket_path: str, flags: dict[str, Any], chosen: dict[str, Any]
) -> tuple[str, ...]:
    program = shutil.which(binary)
    if program is None:
        raise EngineFailed(f"there is no program {binary}", mend="install llama-server or correct engine.binary")
    line = [program, "--model", model, "--host", socket_path, "--no-webui", "--metrics", "--slots"]
    line += [
        "--ctx-size",
        str(flags["n_ctx"]),
        "--parallel",
        str(flags["n_parallel"]),
        "--alias",
        flags["model_alias"][0],
    ]
    line += ["--threads", str(flags["cpuparams.n_threads"]), "--cache-ram", "0", "--no-warmup"]
    # As the embedded server has them: nothing is reused unasked, and no batch keeps a cancelled request for long.
    line += ["--no-cache-prompt", "--batch-size", str(flags["n_batch"])]
    if "pooling_type" in flags:
        names = {number: name for name, number in _POOLING.items()}
        line += ["--embeddings", "--pooling", names[flags["pooling_type"]]]
    for name, value in chosen.items():
        _check_allowed(name)
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            line.append(flag)
        elif value is not False and value is not None:
            line += [flag, str(value)]
    return tuple(line)
