"""The shape of `stoker.yaml` as frozen settings. Touches nothing.

Durations are written `300`, `30s`, `5m`, `1h` and held in seconds; sizes are written `8GiB`, `512MB` or bytes and
held in bytes. A field's suffix-less name is the one that users write; the type says the unit it is held in.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*$")
_DURATION_UNITS_S = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?\s*$")
_SIZE_UNITS_BYTES = {
    None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


def parse_duration_s(value: object) -> object:
    """Turn `5m` or `300` into seconds; anything else is left for the type check to refuse."""
    if isinstance(value, str) and (match := _DURATION.match(value)):
        return float(match[1]) * _DURATION_UNITS_S[match[2]]
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a duration; write seconds or a number with ms, s, m, h or d")
    return value


def parse_size_bytes(value: object) -> object:
    """Turn `8GiB` into bytes; anything else is left for the type check to refuse."""
    if isinstance(value, str) and (match := _SIZE.match(value)):
        return int(float(match[1]) * _SIZE_UNITS_BYTES[match[2]])
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a size; write bytes or a number with KB, MiB, GB, GiB, …")
    return value


def parse_auto_or_duration_s(value: object) -> object:
    """Leave `auto` as it is and read anything else as a duration."""
    return value if value == "auto" else parse_duration_s(value)


def parse_auto_or_size_bytes(value: object) -> object:
    """Leave `auto` as it is and read anything else as a size."""
    return value if value == "auto" else parse_size_bytes(value)


_DURATION_SCHEMA: list[dict[str, Any]] = [
    {"type": "number", "minimum": 0, "description": "seconds"},
    {"type": "string", "pattern": _DURATION.pattern, "examples": ["30s", "5m", "1h"]},
]
_SIZE_SCHEMA: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "description": "bytes"},
    {"type": "string", "pattern": _SIZE.pattern, "examples": ["512MB", "8GiB"]},
]
_AUTO_SCHEMA: dict[str, Any] = {"const": "auto"}

Seconds = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    Field(ge=0, allow_inf_nan=False),
    WithJsonSchema({"anyOf": _DURATION_SCHEMA}),
]
AutoOrSeconds = Annotated[
    Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)],
    BeforeValidator(parse_auto_or_duration_s),
    WithJsonSchema({"anyOf": [_AUTO_SCHEMA, *_DURATION_SCHEMA]}),
]
Bytes = Annotated[int, BeforeValidator(parse_size_bytes), Field(ge=0), WithJsonSchema({"anyOf": _SIZE_SCHEMA})]
AutoOrBytes = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=0)],
    BeforeValidator(parse_auto_or_size_bytes),
    WithJsonSchema({"anyOf": [_AUTO_SCHEMA, *_SIZE_SCHEMA]}),
]
Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Settings never change after they are read, and never hold a key that we do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(Frozen):
    """Where the endpoint listens and what one client may ask of it."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    max_body: Bytes = 16 * 2**20
    max_header: Bytes = 64 * 2**10
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    request_timeout: Seconds = 600.0
    max_connections: int = Field(2048, ge=1)
    allowed_hosts: tuple[str, ...] = Field((), description="further Host names answered to; `*.example.org` works")
    orphan_grace: Seconds = Field(60.0, description="how long the keeper holds engines after the server died")
    drain_timeout: Seconds = Field(60.0, description="how long Ctrl-C waits for requests in flight")


class NodeSettings(Frozen):
    """What this machine may spend on engines; `auto` reads the machine (and its cgroup limit)."""

    memory: AutoOrBytes = "auto"
    memory_reserve: Bytes = Field(512 * 2**20, description="left to the system, never given to engines")
    cores: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    gpus: int = Field(0, ge=0)


class ModelSettings(Frozen):
    """Weights: where they come from and what they are."""

    source: str = Field(description="hf://, https://, file:// or package://<dist>==<version>/<path>")
    sha256: Sha256 | None = None
    licence: str | None = None
    memory: Bytes | None = Field(None, description="overrides the need read from the file")
    allow_private: bool = Field(False, description="the source's host may be a private or loopback address")


class TokenPriceSettings(Frozen):
    """Dollars per million tokens."""

    input_usd_per_million: Usd
    cached_input_usd_per_million: Usd | None = None
    output_usd_per_million: Usd


class EngineSettings(Frozen):
    """The program that serves a replica.

    `kind: llama.cpp` uses the embedded wheel unless `binary` names a `llama-server`. `kind: openai` runs `command`
    (`{model}`, `{port}`, `{socket}` and `{name}` are filled in) or, without a command, uses the server at `url`.
    `kind: vllm` is a profile of `openai`.
    """

    kind: Literal["llama.cpp", "openai", "vllm"] = "llama.cpp"
    binary: str | None = None
    command: tuple[str, ...] | None = None
    url: str | None = None
    health_path: str = "/health"
    env: dict[str, str] = Field(default_factory=dict)
    args: dict[str, Any] = Field(default_factory=dict, description="the engine's own flags, by its own names")
    context_tokens: int | None = Field(None, ge=64)
    slots: int = Field(1, ge=1, le=256, description="requests that one replica runs at once")
    threads: int | None = Field(None, ge=1)
    pooling: Literal["none", "mean", "cls", "last"] | None = Field(None, description="set: an embeddings deployment")
    start_timeout: Seconds = 120.0
    grace: Seconds = Field(5.0, description="between SIGTERM and SIGKILL")


class DeploymentSettings(Frozen):
    """A model with its policy: one name on the endpoint."""

    model: Name
    tier: Literal["serverless", "dedicated"] = "serverless"
    engine: EngineSettings = EngineSettings()
    replicas: int = Field(1, ge=1, description="dedicated: reserved and warm from boot")
    min_replicas: int = Field(0, ge=0, description="serverless: kept warm")
    max_replicas: int = Field(1, ge=1, description="serverless: ceiling")
    target_ongoing_requests: int | None = Field(None, ge=1, description="per replica; default: engine.slots")
    keep_alive: AutoOrSeconds = "auto"
    max_queue: int = Field(64, ge=0)
    max_wait: Seconds = Field(60.0, description="longest predicted or actual wait before a refusal")
    drain_timeout: Seconds = 60.0
    max_start_failures: int = Field(3, ge=1, description="consecutive, then the circuit opens")
    circuit_cooldown: Seconds = 30.0
    tenants: tuple[Name, ...] = Field((), description="dedicated: whose keys may use it; empty: every key")
    regions: tuple[Name, ...] = ()
    memory: Bytes | None = Field(None, description="per replica; overrides the need read from the model file")
    gpus: int = Field(0, ge=0, description="per replica")
    price: TokenPriceSettings | None = None
    retention: Literal["default", "zero"] = "default"

    @model_validator(mode="after")
    def _check_replica_range(self) -> DeploymentSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self

    @property
    def slots_per_replica(self) -> int:
        """Requests admitted to one replica at once."""
        return self.target_ongoing_requests or self.engine.slots


class KeySettings(Frozen):
    """A client key by reference or by hash, never in clear."""

    name: Name
    tenant: Name = "default"
    secret: str | None = Field(None, description="env:NAME, file:PATH or exec:PROGRAM")
    sha256: Sha256 | None = None
    deployments: tuple[Name, ...] = Field((), description="allow-list; empty: all that the tenant may use")


class Settings(Frozen):
    """The whole of one effective configuration."""

    server: ServerSettings = ServerSettings()
    node: NodeSettings = NodeSettings()
    models: dict[Name, ModelSettings] = Field(default_factory=dict)
    deployments: dict[Name, DeploymentSettings] = Field(default_factory=dict)
    keys: tuple[KeySettings, ...] = ()
