"""The tables that the fleet's services share: deployments with their queues, and their replicas. One event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from stoker.config.settings import DeploymentSettings
from stoker.errors import StokerError
from stoker.fleet.control import NodeBudget
from stoker.fleet.domain.capacity import Blocked
from stoker.fleet.domain.estimates import ServiceTimes, StartTimes, prior_start_s
from stoker.fleet.domain.placement import Placement, Reservation, Resources, place
from stoker.fleet.domain.restarts import RestartPolicy, Restarts
from stoker.fleet.domain.slots import SlotTable
from stoker.fleet.domain.views import Ask, Demand, DeploymentView, FleetView
from stoker.fleet.ports import SlotLease
from stoker.fleet.supervisor import LaunchPlan, ReplicaSupervisor
from stoker.models.files import ModelFile


@dataclass(slots=True, eq=False)
class Waiter:
    """A request in a queue; `expires_at_s` is its deadline or the end of the deployment's patience."""

    ask: Ask
    expires_at_s: float
    future: asyncio.Future[SlotLease]


@dataclass(slots=True, eq=False)
class Deployment:
    """A deployment as it is now.

    Attributes:
        launch: None while its model is unavailable; `problem` then says why.
        queue: first come, first served; keyed by identity, so that leaving it costs nothing.
        opened: replicas that take requests, for the data path.
        num_warm: replicas kept ready whatever the demand, as far as their reservation fits.
        promised_at_s: the latest moment at which a refused client was told to come back.
        unplaced: why a dedicated reservation does not fit.
    """

    name: str
    settings: DeploymentSettings
    created_at_us: int
    launch: LaunchPlan | None = None
    problem: StokerError | None = None
    problem_since_s: float = 0.0
    starts: StartTimes = field(default_factory=lambda: StartTimes(prior_start_s(0)))
    service: ServiceTimes = field(default_factory=ServiceTimes)
    restarts: Restarts = field(default_factory=Restarts)
    queue: dict[int, Waiter] = field(default_factory=dict)
    demand: Demand | None = None
    promised_at_s: float | None = None
    replicas: list[ReplicaSupervisor] = field(default_factory=list)
    opened: list[tuple[str, SlotTable]] = field(default_factory=list)
    num_warm: int = 0
    unplaced: str | None = None
    turn_ended_at_s: float | None = None
    is_retired: bool = False

    @property
    def restart_policy(self) -> RestartPolicy:
        return RestartPolicy(self.settings.max_start_failures, self.settings.circuit_cooldown)

    @property
    def wanted_warm(self) -> int:
        return self.settings.replicas if self.settings.tier == "dedicated" else self.settings.min_replicas

    @property
    def max_replicas(self) -> int:
        return self.settings.replicas if self.settings.tier == "dedicated" else self.settings.max_replicas

    def adopt_launch(self, settings: DeploymentSettings, launch: LaunchPlan | None) -> None:
        """Take new settings; estimates survive a change of policy, not one of the launch."""
        previous = self.launch
        self.settings, self.launch = settings, launch
        if launch is not None and (previous is None or previous.fingerprint != launch.fingerprint):
            weights_bytes = launch.model.size_bytes if launch.model is not None else 0
            self.starts = StartTimes(min(prior_start_s(weights_bytes), settings.engine.start_timeout))
            self.restarts = Restarts()

    def promise(self, at_s: float) -> None:
        """Note that a refused client was told to come back at this monotonic time."""
        self.promised_at_s = at_s if self.promised_at_s is None else max(self.promised_at_s, at_s)

    def refresh_opened(self) -> None:
        self.opened = [
            (each.replica_id, each.slots)
            for each in self.replicas
            if each.state.status == "ready" and not each.is_suspect
        ]

    def view(self) -> DeploymentView:
        launch = self.launch
        return DeploymentView(
            name=self.name,
            tier=self.settings.tier,
            tenants=self.settings.tenants,
            num_warm=self.num_warm if launch is not None else 0,
            max_replicas=self.max_replicas if launch is not None else 0,
            slots_per_replica=self.settings.slots_per_replica,
            max_queue=self.settings.max_queue,
            max_wait_s=self.settings.max_wait,
            keep_alive=self.settings.keep_alive,
            need=launch.need if launch is not None else Resources(),
            need_arithmetic=launch.need_arithmetic if launch is not None else "",
            starts=self.starts,
            start_timeout_s=self.settings.engine.start_timeout,
            service=self.service,
            restarts=self.restarts,
            queue=tuple(each.ask for each in self.queue.values()),
            demand=self.demand,
            promised_at_s=self.promised_at_s,
            unplaced=self.unplaced,
            turn_ended_at_s=self.turn_ended_at_s,
            is_retired=self.is_retired,
        )


class Roster:
    """All deployments and replicas of this node."""

    def __init__(self, node: NodeBudget) -> None:
        self.node = node
        self.pool = Resources(max(0, node.memory_bytes - node.memory_reserve_bytes), node.gpus)
        self.deployments: dict[str, Deployment] = {}
        self.replicas: dict[str, ReplicaSupervisor] = {}
        self.by_engine_id: dict[str, ReplicaSupervisor] = {}
        self.placement = Placement({}, {})
        self.blocked: dict[str, Blocked] = {}
        self.keeper_problem: str | None = None
        self.is_draining = False

    def find(self, name: str) -> Deployment | None:
        """Return a deployment that exists for its users."""
        deployment = self.deployments.get(name)
        return None if deployment is None or deployment.is_retired else deployment

    def live(self) -> Iterator[Deployment]:
        return (each for each in self.deployments.values() if not each.is_retired)

    def needs_lost_keeper(self, deployment: Deployment) -> bool:
        """Return whether its replicas cannot start because there is no keeper; others' servers need none."""
        engine = deployment.settings.engine
        return self.keeper_problem is not None and (engine.url is None or engine.command is not None)

    def add(self, replica: ReplicaSupervisor) -> None:
        self.replicas[replica.replica_id] = replica
        self.by_engine_id[replica.engine_id] = replica
        self.deployments[replica.deployment].replicas.append(replica)

    def remove(self, replica: ReplicaSupervisor) -> None:
        self.replicas.pop(replica.replica_id, None)
        if self.by_engine_id.get(replica.engine_id) is replica:
            del self.by_engine_id[replica.engine_id]
        deployment = self.deployments.get(replica.deployment)
        if deployment is None:
            return
        if replica in deployment.replicas:
            deployment.replicas.remove(replica)
        if deployment.is_retired and not deployment.replicas:
            del self.deployments[deployment.name]

    def view(self) -> FleetView:
        """Return the moment as values. Slot tables are shared, so it must be used before anything else runs."""
        return FleetView(
            pool=self.pool,
            deployments={name: each.view() for name, each in self.deployments.items()},
            replicas=tuple(each.view() for each in self.replicas.values()),
            reserved=self.placement.placed,
        )

    def place(self) -> None:
        """Set reservations aside anew; a warm floor of a serverless deployment that does not fit is only dropped."""
        self.placement = place(self.pool, [reservation(each) for each in self.live() if each.launch is not None])
        for each in self.deployments.values():
            each.num_warm = each.wanted_warm if each.name in self.placement.placed else 0
            is_dedicated = each.settings.tier == "dedicated"
            each.unplaced = self.placement.unplaced.get(each.name) if is_dedicated else None

    def refresh_current(self) -> None:
        """Mark the replicas that no longer are what their deployment declares."""
        for deployment in self.deployments.values():
            for each in deployment.replicas:
                each.is_current = deployment.launch is None or each.launch.fingerprint == deployment.launch.fingerprint


def reservation(deployment: Deployment) -> Reservation:
    need = deployment.launch.need if deployment.launch is not None else Resources()
    kind = "dedicated" if deployment.settings.tier == "dedicated" else "min_replicas"
    return Reservation(deployment.name, kind, need, deployment.wanted_warm)


def launch_fingerprint(settings: DeploymentSettings, model: ModelFile | None) -> str:
    """Return a digest of all that a running engine would have to be replaced for; policy is no part of it."""
    engine = settings.engine.model_dump(mode="json", exclude={"start_timeout", "grace"})
    weights = None if model is None else [str(model.path), model.sha256]
    facts = {"engine": engine, "model": weights, "memory": settings.memory, "gpus": settings.gpus}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
