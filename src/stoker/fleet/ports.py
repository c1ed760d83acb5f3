"""What the fleet asks of keeper and engines, and the slot leases it offers to the gateway. Pure interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from stoker.config.settings import DeploymentSettings
from stoker.models.files import ModelFile

# ---------------------------------------------------------------------------------------------- endpoints


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine answers: a UNIX socket, or a host and port.

    Attributes:
        socket_path: absolute path; None when `host` and `port` are set.
        base_path: prefix of every route, without a trailing slash.
        health_path: what its adapter asks to know whether it is ready.
    """

    socket_path: str | None = None
    host: str | None = None
    port: int | None = None
    base_path: str = ""
    health_path: str = "/health"


# ---------------------------------------------------------------------------------------------- keeper


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One engine process for the keeper to start and own.

    Attributes:
        argv: program and arguments; no shell.
        env: the whole environment.
        log_path: rotating log that the drained output goes to.
        endpoint: where it will answer; the keeper unlinks a socket file before the start and after the end.
        notes: opaque to the keeper, kept with the engine and handed to the server that adopts it.
        is_ready: whether a server has declared this engine ready; only such engines outlive a dead server.
    """

    replica_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    log_path: str
    endpoint: Endpoint
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeldEngine:
    """An engine process that the keeper owns now."""

    replica_id: str
    pid: int
    is_ready: bool
    endpoint: Endpoint
    notes: Mapping[str, str]
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class EngineExit:
    """An engine process ended and was reaped, with all of its descendants.

    Attributes:
        exit_code: None when a signal ended it.
        signal: number of that signal, None otherwise.
        last_words: the end of its output, at most 4 KiB, decoded with replacement.
    """

    replica_id: str
    exit_code: int | None
    signal: int | None
    last_words: str


class ExitListener(Protocol):
    """Receives what the keeper reports; both return at once."""

    def on_engine_exit(self, exited: EngineExit) -> None: ...
    def on_keeper_lost(self, detail: str) -> None: ...


class Keeper(Protocol):
    """The server's side of the keeper process. Every call raises `KeeperUnavailable` when it does not answer.

    All calls are idempotent: starting a running replica returns its pid, ending an absent one does nothing.
    """

    def listen(self, listener: ExitListener) -> None: ...
    async def launch(self, spec: LaunchSpec) -> int:
        """Start the process and return its pid. Raises `EngineFailed` when the program cannot be run at all."""
        ...

    async def mark_ready(self, replica_id: str, *, is_ready: bool) -> None: ...
    async def terminate(self, replica_id: str) -> None:
        """SIGTERM to the whole group; the exit is reported to the listener."""
        ...

    async def kill(self, replica_id: str) -> None:
        """SIGKILL to the engine and every descendant."""
        ...

    async def held(self) -> tuple[HeldEngine, ...]: ...
    async def shutdown(self) -> None:
        """End every engine, then the keeper itself."""
        ...


# ---------------------------------------------------------------------------------------------- engines

Surface = Literal["chat.completions", "completions", "embeddings", "infill", "responses", "messages", "tokenize"]
Health = Literal["starting", "ready", "unhealthy"]


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """Everything an engine adapter needs to write a launch line."""

    replica_id: str
    deployment: str
    settings: DeploymentSettings
    model: ModelFile | None
    run_dir: Path
    log_dir: Path
    threads: int


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """A replica's memory, with the arithmetic that a refusal shows.

    Attributes:
        arithmetic: e.g. `weights 94 MiB + KV cache 45 MiB + compute 128 MiB + overhead 64 MiB = 331 MiB`.
    """

    total_bytes: int
    arithmetic: str


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class SlotUse:
    """How a request may use its place on a replica.

    Attributes:
        slot_index: the engine's slot, 0 … slots − 1.
        may_reuse_prefix: False when another tenant's content may still be in that slot.
        tenant_salt: keys an engine-wide prefix cache by tenant, where the engine has such a thing.
    """

    slot_index: int
    may_reuse_prefix: bool
    tenant_salt: str


class Engine(Protocol):
    """One adapter per serving program; stateless. Adapters do not know one another."""

    kind: str

    def surfaces(self, settings: DeploymentSettings, model: ModelFile | None) -> frozenset[Surface]:
        """Return what this deployment can be asked for."""
        ...

    def memory_need(self, settings: DeploymentSettings, model: ModelFile | None) -> MemoryNeed: ...

    def plan_launch(self, request: LaunchRequest) -> LaunchSpec | Endpoint:
        """Return what the keeper shall start, or the endpoint of a server that somebody else runs."""
        ...

    async def health(self, endpoint: Endpoint) -> Health:
        """Ask once, within a second; connection refused means `starting`."""
        ...

    def prepare(self, surface: Surface, body: dict[str, Any], use: SlotUse) -> None:
        """Drop the engine-control fields that a client must not set from `body`, and set our own, in place."""
        ...

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,
        use: SlotUse,
        surface: Surface,
        body: dict[str, Any],
        last_event: bytes,
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        """End a request by `close` and return its input, cached and output tokens, None when they are not known.

        The slot is still the request's; the caller bounds the time.

        Args:
            body: as it was sent, after `prepare`.
            last_event: the last streamed event that arrived, empty without one.
            close: closes the request's connection, which stops the engine; a second call does nothing.

        Raises:
            OSError, TimeoutError: the engine does not answer.
        """
        ...

    def path(self, surface: Surface) -> str:
        """Return the engine's route for a surface, beginning with `/`."""
        ...


# ---------------------------------------------------------------------------------------------- slot leases


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class LeaseAsk:
    """A request that wants a slot.

    Attributes:
        est_tokens: input estimate + the client's output limit, for predicted waits.
        deadline_s: monotonic time after which a slot is of no use.
        session: affinity hint, None without one.
        excluded_replicas: replicas that already failed this request.
    """

    request_id: str
    deployment: str
    tenant: str
    est_tokens: int
    deadline_s: float
    session: str | None = None
    excluded_replicas: frozenset[str] = frozenset()


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class SlotLease:
    """A place on one ready replica, held until released.

    Attributes:
        lease_id: unique for the life of this server.
        engine: the adapter that prepares bodies for the replica.
        surfaces: what this replica may be asked for.
        queue_s: seconds from the ask to the grant, the cold start included.
        cold_start_s: the part of it that a replica's start took; 0.0 when it was ready.
    """

    lease_id: int
    deployment: str
    tier: str
    replica_id: str
    endpoint: Endpoint
    engine: Engine
    use: SlotUse
    queue_s: float
    cold_start_s: float


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class LeaseEnd:
    """How a lease was used, for estimates and health.

    Attributes:
        held_s: grant → release.
        is_replica_suspect: the connection broke or the engine answered 5xx; its health is asked at once.
    """

    held_s: float
    input_tokens: int | None
    output_tokens: int | None
    is_replica_suspect: bool = False


class SlotLeases(Protocol):
    """The gateway's side of the fleet; serialisable values only, so that it can cross a socket."""

    async def acquire(self, ask: LeaseAsk) -> SlotLease:
        """Hold until a slot is granted. Cancelling leaves the queue; a start under way goes on.

        Raises:
            UnknownModel: no such deployment.
            Forbidden: the deployment is reserved for other tenants.
            NoCapacity: refused, with a truthful `retry_after_s` and the arithmetic.
            DeadlineExceeded: the wait outlived `deadline_s`.
            EngineFailed: the replica that was waited for failed; its own last words are in the message.
            InsufficientMemory: the model cannot fit, ever.
            Draining: the server is going away.
        """
        ...

    def release(self, lease: SlotLease, end: LeaseEnd) -> None:
        """Give the slot back; a second time is a no-op."""
        ...


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """What the gateway needs to know of a deployment without asking it for a slot.

    Attributes:
        context_tokens: None when unknown.
        created_at_us: for `/v1/models`.
    """

    name: str
    model: str
    tier: str
    tenants: tuple[str, ...]
    surfaces: frozenset[Surface]
    context_tokens: int | None
    created_at_us: int
    settings: DeploymentSettings


class Directory(Protocol):
    """Reads of the deployment table; synchronous, from memory."""

    def find(self, name: str) -> DeploymentFacts | None: ...
    def all(self) -> tuple[DeploymentFacts, ...]: ...
