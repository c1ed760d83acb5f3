"""A whole fleet without processes: scripted engines, a fake keeper, a memory ledger, and time that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stoker.config.settings import DeploymentSettings
from stoker.errors import ModelUnavailable
from stoker.events import DeploymentChanged, EventBus, ReplicaMoved
from stoker.fleet.control import DeploymentSnapshot, NodeBudget, ReplicaSnapshot
from stoker.fleet.fleet import Fleet
from stoker.fleet.ports import (
    Endpoint,
    Health,
    LaunchRequest,
    LaunchSpec,
    LeaseAsk,
    LeaseEnd,
    MemoryNeed,
    SlotLease,
    SlotUse,
    Surface,
)
from stoker.models.files import ModelFile
from stoker.testing.clock import VirtualClock
from stoker.testing.keeper import FakeKeeper
from stoker.testing.ledger import MemoryLedger

MIB = 2**20


class ScriptedEngine:
    """An `Engine` whose replicas become ready after as many seconds as the test says.

    Attributes:
        start_s: seconds from launch to ready, by deployment; 1.0 for those not named. `inf`: never.
        unhealthy: replicas that answer no more.
        launches: every launch request, in order.
    """

    kind = "llama.cpp"

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.start_s: dict[str, float] = {}
        self.unhealthy: set[str] = set()
        self.launches: list[LaunchRequest] = []
        self._ready_at_s: dict[str, float] = {}

    def surfaces(self, settings: DeploymentSettings, model: ModelFile | None) -> frozenset[Surface]:
        return frozenset({"embeddings"} if settings.engine.pooling else {"chat.completions", "completions"})

    def memory_need(self, settings: DeploymentSettings, model: ModelFile | None) -> MemoryNeed:
        return MemoryNeed(100 * MIB, "weights 60 MiB + KV cache 40 MiB = 100 MiB")

    def plan_launch(self, request: LaunchRequest) -> LaunchSpec | Endpoint:
        self.launches.append(request)
        ready_at_s = self._clock.monotonic_s() + self.start_s.get(request.deployment, 1.0)
        self._ready_at_s[request.replica_id] = ready_at_s
        endpoint = Endpoint(socket_path=f"/run/{request.replica_id}.sock")
        if request.settings.engine.url is not None:
            return endpoint
        log_path = str(request.log_dir / f"{request.deployment}.log")
        return LaunchSpec(request.replica_id, ("engine",), {}, "/", log_path, endpoint, {"kind": self.kind})

    async def health(self, endpoint: Endpoint) -> Health:
        assert endpoint.socket_path is not None
        engine_id = Path(endpoint.socket_path).stem
        if engine_id in self.unhealthy:
            return "unhealthy"
        return "ready" if self._clock.monotonic_s() >= self._ready_at_s.get(engine_id, 0.0) else "starting"

    def prepare(self, surface: Surface, body: dict[str, Any], use: SlotUse) -> None:
        body["id_slot"] = use.slot_index

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,
        use: SlotUse,
        surface: Surface,
        body: dict[str, Any],
        last_event: bytes,
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        return None

    def path(self, surface: Surface) -> str:
        return f"/v1/{surface}"


class FleetHarness:
    """A `Fleet` with everything around it in memory.

    Args:
        pool_mib: memory for engines, the system's reserve already taken off.
    """

    def __init__(self, *, pool_mib: int = 1000, cores: int = 4, gpus: int = 0) -> None:
        self.clock = VirtualClock()
        self.keeper = FakeKeeper()
        self.ledger = MemoryLedger()
        self.engine = ScriptedEngine(self.clock)
        self.moves: list[ReplicaMoved] = []
        self.changes: list[DeploymentChanged] = []
        self.missing_models: set[str] = set()
        self.node = NodeBudget((pool_mib + 100) * MIB, 100 * MIB, cores, gpus)
        self.fleet = self.new_fleet()
        self._num_asks = 0

    def new_fleet(self) -> Fleet:
        """Return another server's fleet on the same keeper, clock and ledger."""
        bus = EventBus()
        bus.subscribe(ReplicaMoved, self.moves.append)
        bus.subscribe(DeploymentChanged, self.changes.append)
        return Fleet(
            keeper=self.keeper,
            engines={self.engine.kind: self.engine},
            recorder=self.ledger,
            clock=self.clock,
            bus=bus,
            node=self.node,
            model_files=self._model_file,
            run_dir=Path("/run"),
            log_dir=Path("/log"),
        )

    async def _model_file(self, name: str) -> ModelFile | None:
        if name in self.missing_models:
            raise ModelUnavailable(f"model {name} cannot be fetched")
        return ModelFile(name, Path(f"/models/{name}.gguf"), "0" * 64, 60 * MIB, 2048, has_chat_template=True)

    # ------------------------------------------------------------------ doing

    async def start(self, deployments: Mapping[str, DeploymentSettings], *, warm_up_s: float = 0.0) -> None:
        """Start the fleet and let `warm_up_s` seconds pass."""
        await self.fleet.start(deployments)
        await self.clock.advance(warm_up_s)

    def ask(
        self,
        deployment: str,
        *,
        tenant: str = "acme",
        within_s: float = 600.0,
        session: str | None = None,
        excluded: frozenset[str] = frozenset(),
    ) -> asyncio.Task[SlotLease]:
        """Ask for a slot in a task of its own."""
        self._num_asks += 1
        deadline_s = self.clock.monotonic_s() + within_s
        ask = LeaseAsk(f"req-{self._num_asks}", deployment, tenant, 0, deadline_s, session, excluded)
        return asyncio.create_task(self.fleet.acquire(ask))

    def done(self, lease: SlotLease, *, held_s: float = 0.1, is_replica_suspect: bool = False) -> None:
        """End a request well, or with a suspicion."""
        tokens = None if is_replica_suspect else 10
        self.fleet.release(lease, LeaseEnd(held_s, tokens, tokens, is_replica_suspect))

    async def serve(self, deployment: str, *, for_s: float = 0.1, **ask: Any) -> SlotLease:
        """Ask, wait however long it takes, hold for `for_s` virtual seconds, and release; returns the ended lease."""
        lease = await self.ask(deployment, **ask)
        await self.clock.sleep(for_s)
        self.done(lease, held_s=for_s)
        return lease

    # ------------------------------------------------------------------ looking

    def deployment(self, name: str) -> DeploymentSnapshot:
        found = self.fleet.snapshot().deployment(name)
        assert found is not None, f"no deployment {name}"
        return found

    def replicas(self, name: str) -> tuple[ReplicaSnapshot, ...]:
        return self.deployment(name).replicas

    def statuses(self, name: str) -> tuple[str, ...]:
        return tuple(each.status for each in self.replicas(name))

    @property
    def used_mib(self) -> int:
        return self.fleet.snapshot().node.used_bytes // MIB

    def path_of(self, replica_id: str) -> tuple[str, ...]:
        """Return the statuses that a replica went through, the first one included."""
        moves = [each for each in self.moves if each.replica_id == replica_id]
        return (moves[0].from_status, *(each.to_status for each in moves)) if moves else ()

    def verbs(self, name: str) -> list[str]:
        """Return what the keeper was told about replicas of a deployment, in order."""
        return [each.verb for each in self.keeper.calls if (each.replica_id or "").startswith(f"{name}-")]


def serverless(*, memory_mib: int = 100, **settings: Any) -> DeploymentSettings:
    """Return a serverless deployment of `memory_mib` a replica."""
    return DeploymentSettings(model="m", tier="serverless", memory=memory_mib * MIB, **settings)


def dedicated(*, memory_mib: int = 100, **settings: Any) -> DeploymentSettings:
    """Return a dedicated deployment of `memory_mib` a replica."""
    return DeploymentSettings(model="m", tier="dedicated", memory=memory_mib * MIB, **settings)
