"""What the fleet's decisions look at: the moment, as values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stoker.fleet.domain.estimates import ServiceTimes, StartTimes
from stoker.fleet.domain.eviction import FAIR_QUANTUM_S
from stoker.fleet.domain.lifecycle import FINAL_STATUSES, Status
from stoker.fleet.domain.placement import Reservation, Resources
from stoker.fleet.domain.restarts import Restarts
from stoker.fleet.domain.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that wants a slot; in a queue when `queued_at_s` lies in the past.

    Attributes:
        est_tokens: input estimate + output limit, 0 when unknown.
        deadline_s: monotonic time after which a slot is of no use.
        excluded_replicas: those that already failed this request.
    """

    request_id: str
    deployment: str
    tenant: str
    est_tokens: int
    deadline_s: float
    queued_at_s: float
    session: str | None = None
    excluded_replicas: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """Refused requests count as demand until `until_s`: a deployment must not starve because it never may queue."""

    since_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica.

    Attributes:
        since_s: when it entered its status.
        idle_since_s: end of its last request, None while busy or not ready.
        is_suspect: its health is being asked; no slot is granted on it meanwhile.
        is_current: launched as its deployment is declared now.
        slots: read, never changed, by a decision.
        held: memory and GPUs it occupies until it is stopped or failed.
    """

    replica_id: str
    deployment: str
    status: Status
    since_s: float
    idle_since_s: float | None
    slots: SlotTable
    held: Resources
    is_suspect: bool = False
    is_current: bool = True

    @property
    def is_live(self) -> bool:
        return self.status not in FINAL_STATUSES

    @property
    def is_open(self) -> bool:
        return self.status == "ready" and not self.is_suspect


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment: its policy, what was learned, and who waits.

    Attributes:
        num_warm: replicas kept ready whatever the demand: dedicated `replicas`, serverless `min_replicas`.
        max_replicas: ceiling; equals `num_warm` for dedicated ones.
        keep_alive: `auto` or seconds.
        need: of one replica.
        need_arithmetic: how that figure comes about.
        promised_at_s: the latest moment at which a refused client was told to come back, None when nobody was.
        unplaced: the arithmetic when its reservation does not fit, None when it does.
        turn_ended_at_s: when its last serving replica was closed; whoever had a turn stands in line from then.
        is_retired: deleted, on its way out.
    """

    name: str
    tier: str
    tenants: tuple[str, ...]
    num_warm: int
    max_replicas: int
    slots_per_replica: int
    max_queue: int
    max_wait_s: float
    keep_alive: str | float
    need: Resources
    need_arithmetic: str
    starts: StartTimes
    start_timeout_s: float
    service: ServiceTimes = field(default_factory=ServiceTimes)
    restarts: Restarts = field(default_factory=Restarts)
    queue: tuple[Ask, ...] = ()
    demand: Demand | None = None
    promised_at_s: float | None = None
    unplaced: str | None = None
    turn_ended_at_s: float | None = None
    is_retired: bool = False


@dataclass(frozen=True, slots=True)
class FleetView:
    """Everything at one moment.

    Attributes:
        pool: the node's total less the system's reserve.
        reserved: the reservations that fit, by deployment, in the order they were placed.
        deployments: in the order of their declaration.
    """

    pool: Resources
    deployments: Mapping[str, DeploymentView]
    replicas: tuple[ReplicaView, ...]
    reserved: Mapping[str, Reservation] = field(default_factory=dict)
    quantum_s: float = FAIR_QUANTUM_S

    def of(self, deployment: str) -> tuple[ReplicaView, ...]:
        """Return the deployment's replicas that are not over."""
        return tuple(each for each in self.replicas if each.deployment == deployment and each.is_live)

    def room_for(self, deployment: str, held: Mapping[str, Resources]) -> Resources:
        """Return what one deployment could still take when each holds what `held` says.

        pool − Σ over the others of max(reserved, held) − its own holdings; so it never exceeds what is really free.
        """
        room = self.pool
        for name in {**held, **self.reserved}:
            own = held.get(name, Resources())
            if name != deployment and name in self.reserved:
                own = own.or_more(self.reserved[name].total)
            room = room - own
        return room
