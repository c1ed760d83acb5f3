"""The fleet's state as the values that `ps` and `status` show. Reads the roster only."""

from __future__ import annotations

from stoker.fleet.control import DeploymentSnapshot, FleetSnapshot, NodeSnapshot, ReplicaSnapshot
from stoker.fleet.domain.admission import predicted_wait_s
from stoker.fleet.domain.capacity import never_fits
from stoker.fleet.domain.estimates import start_left_s
from stoker.fleet.domain.placement import Resources
from stoker.fleet.domain.views import FleetView
from stoker.fleet.roster import Deployment, Roster
from stoker.fleet.supervisor import ReplicaSupervisor


def survey(roster: Roster, now_s: float) -> FleetSnapshot:
    """Return everything at this monotonic time."""
    view = roster.view()
    return FleetSnapshot(
        node=_node(roster, view),
        deployments=tuple(_deployment(roster, view, each, now_s) for each in roster.deployments.values()),
        is_draining=roster.is_draining,
        keeper_problem=roster.keeper_problem,
    )


def _node(roster: Roster, view: FleetView) -> NodeSnapshot:
    held: dict[str, Resources] = {}
    for each in view.replicas:
        held[each.deployment] = held.get(each.deployment, Resources()) + each.held
    used = sum(held.values(), Resources())
    return NodeSnapshot(
        memory_bytes=roster.node.memory_bytes,
        memory_reserve_bytes=roster.node.memory_reserve_bytes,
        reserved_bytes=sum(each.total.memory_bytes for each in roster.placement.placed.values()),
        used_bytes=used.memory_bytes,
        free_bytes=max(0, view.room_for("", held).memory_bytes),
        cores=roster.node.cores,
        gpus=roster.node.gpus,
        gpus_used=used.gpus,
    )


def _deployment(roster: Roster, view: FleetView, deployment: Deployment, now_s: float) -> DeploymentSnapshot:
    launch = deployment.launch
    reserved = roster.placement.placed.get(deployment.name)
    num_ready = sum(each.state.status == "ready" for each in deployment.replicas)
    circuit_s = deployment.restarts.blocked_for_s(now_s) if deployment.restarts.is_open else None
    replicas = tuple(_replica(deployment, each, now_s) for each in deployment.replicas)
    eta_s = None
    if launch is not None and not roster.is_draining and never_fits(view, view.deployments[deployment.name]) is None:
        eta_s = predicted_wait_s(view, view.deployments[deployment.name], now_s)
    return DeploymentSnapshot(
        name=deployment.name,
        model=deployment.settings.model,
        tier=deployment.settings.tier,
        status=_status(roster, deployment, num_ready, now_s),
        ready_replicas=num_ready,
        wanted_replicas=deployment.wanted_warm,
        max_replicas=deployment.max_replicas,
        ongoing=sum(each.slots.ongoing for each in deployment.replicas),
        queued=len(deployment.queue),
        eta_s=eta_s,
        memory_need_bytes=launch.need.memory_bytes if launch is not None else 0,
        memory_arithmetic=launch.need_arithmetic if launch is not None else "",
        reserved_bytes=reserved.total.memory_bytes if reserved is not None else 0,
        learned_start_s=deployment.starts.learned_s,
        start_samples=len(deployment.starts.measured_s),
        consecutive_failures=deployment.restarts.num_failures,
        circuit_retry_in_s=circuit_s,
        last_error=_last_error(roster, deployment),
        replicas=replicas,
    )


def _status(roster: Roster, deployment: Deployment, num_ready: int, now_s: float) -> str:
    if deployment.is_retired:
        return "draining"
    if num_ready:
        return "ready"
    if deployment.launch is None or deployment.unplaced is not None or deployment.restarts.is_refusing(now_s):
        return "failed"
    if any(each.state.status == "starting" for each in deployment.replicas):
        return "starting"
    return "waiting" if deployment.name in roster.blocked else "cold"


def _last_error(roster: Roster, deployment: Deployment) -> str | None:
    if deployment.problem is not None and deployment.launch is None:
        return str(deployment.problem)
    if deployment.unplaced is not None:
        return deployment.unplaced
    blocked = roster.blocked.get(deployment.name)
    return deployment.restarts.last_words or (blocked.reason if blocked is not None else None)


def _replica(deployment: Deployment, replica: ReplicaSupervisor, now_s: float) -> ReplicaSnapshot:
    status = replica.state.status
    elapsed_s = now_s - replica.since_s
    eta_s = None
    if status == "starting":
        eta_s = start_left_s(deployment.starts.learned_s, elapsed_s, deployment.settings.engine.start_timeout)
    is_idle = status == "ready" and replica.idle_since_s is not None
    return ReplicaSnapshot(
        replica_id=replica.replica_id,
        engine_id=replica.engine_id,
        deployment=replica.deployment,
        tier=replica.tier,
        pid=replica.pid,
        status=status,
        status_for_s=elapsed_s,
        reason=replica.reason,
        idle_for_s=now_s - replica.idle_since_s if is_idle and replica.idle_since_s is not None else None,
        ongoing=replica.slots.ongoing,
        slots=replica.slots.limit,
        memory_bytes=replica.launch.need.memory_bytes,
        gpus=replica.launch.need.gpus,
        threads=replica.threads,
        eta_s=eta_s,
        is_current=replica.is_current,
    )
