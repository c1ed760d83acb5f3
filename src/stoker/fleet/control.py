"""What the operator's side (CLI, admin, wiring) asks of the fleet, and the values it gets back. Pure interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from stoker.config.settings import DeploymentSettings
from stoker.fleet.ports import Keeper
from stoker.models.files import ModelFile


@dataclass(frozen=True, slots=True)
class NodeBudget:
    """What this machine may spend on engines.

    Attributes:
        memory_bytes: the machine's memory (or its cgroup limit) as found or configured.
        memory_reserve_bytes: the part of it that is left to the system.
        cores: that replicas share.
        gpus: whole devices, handed out exclusively.
    """

    memory_bytes: int
    memory_reserve_bytes: int
    cores: int
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """One replica for `ps`.

    Attributes:
        engine_id: the keeper's name for its process; differs from `replica_id` after an adoption.
        pid: None before the launch and for servers that somebody else runs.
        status: cold, starting, ready, draining, stopping, stopped or failed.
        status_for_s: seconds in this status.
        idle_for_s: seconds since the end of its last request; None while busy or not ready.
        ongoing: requests that hold a slot now.
        slots: requests that it may hold at once.
        eta_s: predicted seconds until ready; None unless starting.
        is_current: launched as its deployment is declared now; False: a roll will replace it.
    """

    replica_id: str
    engine_id: str
    deployment: str
    tier: str
    pid: int | None
    status: str
    status_for_s: float
    reason: str
    idle_for_s: float | None
    ongoing: int
    slots: int
    memory_bytes: int
    gpus: int
    threads: int
    eta_s: float | None
    is_current: bool


@dataclass(frozen=True, slots=True)
class DeploymentSnapshot:
    """One deployment for `status`.

    Attributes:
        status: `ready`, `starting`, `cold` (no replica, the next request wakes one), `waiting` (for memory),
            `failed` (the circuit is open or the model is unavailable) or `draining` (deleted, on its way out).
        queued: requests held for a slot.
        eta_s: predicted wait of a request that arrives now; None when it would be refused.
        memory_need_bytes: of one replica.
        memory_arithmetic: how that figure comes about.
        reserved_bytes: set aside from the pool for its `replicas` or `min_replicas`.
        learned_start_s: predicted cold start.
        start_samples: how many measured starts stand behind it; 0: a prior.
        consecutive_failures: of starts, or of replicas that never served.
        circuit_retry_in_s: seconds until an open circuit lets the next start through; None when closed.
        last_error: the engine's last words, or why the model is unavailable.
    """

    name: str
    model: str
    tier: str
    status: str
    ready_replicas: int
    wanted_replicas: int
    max_replicas: int
    ongoing: int
    queued: int
    eta_s: float | None
    memory_need_bytes: int
    memory_arithmetic: str
    reserved_bytes: int
    learned_start_s: float
    start_samples: int
    consecutive_failures: int
    circuit_retry_in_s: float | None
    last_error: str | None
    replicas: tuple[ReplicaSnapshot, ...]


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """The machine's budget now, in bytes; `free_bytes` is what a serverless replica could still take."""

    memory_bytes: int
    memory_reserve_bytes: int
    reserved_bytes: int
    used_bytes: int
    free_bytes: int
    cores: int
    gpus: int
    gpus_used: int


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Everything that `ps` and `status` show.

    Attributes:
        keeper_problem: why no engine can run now, None while the keeper answers.
    """

    node: NodeSnapshot
    deployments: tuple[DeploymentSnapshot, ...]
    is_draining: bool
    keeper_problem: str | None

    def deployment(self, name: str) -> DeploymentSnapshot | None:
        """Return the deployment of this name, None without one."""
        return next((each for each in self.deployments if each.name == name), None)


class FleetControl(Protocol):
    """The fleet as its operator sees it; `stoker.fleet.fleet.Fleet` is it."""

    async def start(self, deployments: Mapping[str, DeploymentSettings]) -> None:
        """Adopt what the keeper holds, start what must be warm, and begin to admit requests.

        A deployment whose model is unavailable or does not fit does not fail the others: it says so when asked.

        Raises:
            KeeperUnavailable: the keeper does not answer.
        """
        ...

    async def reconcile(
        self, deployments: Mapping[str, DeploymentSettings], models: Mapping[str, ModelFile | None] | None = None
    ) -> None:
        """Make these the deployments: create, change, move and delete, without a dropped request.

        Returns once the change is accepted; replicas follow by themselves, make before break.

        Args:
            models: files already at hand by model name; the others are asked for.

        Raises:
            ModelUnavailable: a new or changed model cannot be had; nothing was changed.
            InsufficientMemory: a new or changed reservation cannot fit, with the arithmetic; nothing was changed.
        """
        ...

    async def scale(self, name: str, replicas: int) -> DeploymentSettings:
        """Keep this many replicas warm from now on and return the settings that say so.

        dedicated: `replicas`; serverless: `min_replicas`, raising `max_replicas` where needed.

        Raises:
            NotFound, BadRequest, InsufficientMemory
        """
        ...

    def snapshot(self) -> FleetSnapshot: ...

    async def drain(self, timeout_s: float) -> bool:
        """Refuse what arrives and what is queued, and wait for requests in flight.

        Returns:
            True when all of them ended within `timeout_s` seconds.
        """
        ...

    async def stop(self) -> None:
        """End every engine (the keeper itself stays); idempotent."""
        ...

    async def detach(self) -> None:
        """Leave the ready engines to the keeper for the next server, end the others; idempotent."""
        ...

    async def reconnect(self, keeper: Keeper) -> None:
        """Go on with another keeper after one was lost, adopting what it holds."""
        ...
