"""The one place that decides what becomes of a request: a slot now, a wait, or a refusal. Pure.

`decide`, in order:

1. not its tenant → refused (`forbidden`);
2. a slot is free on an open replica and nobody stands before it → granted: same session, then same tenant, then least
   loaded;
3. the circuit is open and nothing serves → refused with the engine's last words, until the cool-down ends;
4. it can never fit → refused with the arithmetic (`insufficient_memory`, or `capacity_exhausted` by reservations);
5. the queue is full → refused until a place in it is predicted to be free;
6. the predicted wait is inside its deadline and `max_wait` → waits; a replica is woken where the plan says so;
7. else → refused until the predicted wait has passed; the replica is woken all the same, so that a retry finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stoker.fleet.domain.capacity import CapacityPlan, DrainReplica, StartReplica, exceeds_pool, never_fits, plan
from stoker.fleet.domain.estimates import predict_wait_s, start_left_s
from stoker.fleet.domain.slots import SlotTable
from stoker.fleet.domain.views import Ask, Demand, DeploymentView, FleetView, ReplicaView

RefusalCode = Literal["forbidden", "capacity_exhausted", "insufficient_memory", "engine_failed", "deadline_exceeded"]
DEMAND_PATIENCE_S = 30.0  # how long after its `retry_after_s` a refused request still counts as demand


@dataclass(frozen=True, slots=True)
class Granted:
    replica_id: str
    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold the request in its deployment's queue.

    Attributes:
        eta_s: predicted seconds until it gets a slot.
        wake: replicas to start for it now; empty when those under way suffice or memory is short.
        evict: replicas that make room for it now.
    """

    eta_s: float
    reason: str
    wake: tuple[StartReplica, ...] = ()
    evict: tuple[DrainReplica, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Say no, and when a retry can succeed.

    Attributes:
        retry_after_s: None when nothing but a change of the configuration helps.
        arithmetic: the figures behind the refusal, for the client to read.
        demand: the request counts as waiting for memory until a retry may be back; None when that would not help.
    """

    code: RefusalCode
    retry_after_s: float | None
    reason: str
    arithmetic: str = ""
    wake: tuple[StartReplica, ...] = ()
    evict: tuple[DrainReplica, ...] = ()
    demand: Demand | None = None


Decision = Granted | Wait | Refused


def choose_slot(
    replicas: Sequence[tuple[str, SlotTable]], tenant: str, session: str | None, excluded: frozenset[str] = frozenset()
) -> tuple[str, int] | None:
    """Choose among open replicas: same session, then same tenant, then least loaded, then the slot unused longest.

    Returns:
        Replica and slot, None when none is free. Nothing is changed.
    """
    best: tuple[str, int] | None = None
    best_key = (4, 0.0)
    for replica_id, slots in replicas:
        if slots.ongoing >= slots.limit or replica_id in excluded:
            continue
        match = slots.match(tenant, session)
        if match is None:
            continue
        key = (match.rank, slots.ongoing / slots.limit)
        if best is None or key < best_key:
            best, best_key = (replica_id, match.slot), key
            if match.rank == 0:
                break
    return best


def decide(view: FleetView, ask: Ask, now_s: float) -> Decision:
    """Decide what becomes of a request that arrives now; see the module's list, which carries the same numbers.

    Args:
        view: the moment; `ask.deployment` must be in it.
        now_s: monotonic time.
    """
    deployment = view.deployments[ask.deployment]
    # 1
    if not may_use(deployment.tier, deployment.tenants, ask.tenant):
        return Refused("forbidden", None, f"{deployment.name} is reserved for other tenants")
    replicas = view.of(ask.deployment)
    opened = [each for each in replicas if each.is_open]
    # 2
    if not deployment.queue:
        place = choose_slot(
            [(each.replica_id, each.slots) for each in opened], ask.tenant, ask.session, ask.excluded_replicas
        )
        if place is not None:
            return Granted(*place, reason="a slot is free")
    # 3
    restarts = deployment.restarts
    serving = [each for each in replicas if each.status in ("ready", "starting")]
    if restarts.is_refusing(now_s) and not any(each.status == "ready" for each in serving):
        retry_s = restarts.blocked_for_s(now_s) + deployment.starts.learned_s
        words = f"{restarts.num_failures} starts in a row failed; the last one: {restarts.last_words}"
        return Refused("engine_failed", retry_s, words)
    # 4
    if not serving and (words_never := never_fits(view, deployment)) is not None:
        code: RefusalCode = "insufficient_memory" if exceeds_pool(view, deployment) else "capacity_exhausted"
        return Refused(code, None, "there is not enough memory for one replica", words_never)
    if is_hopeless(deployment, serving, ask):
        return Refused("engine_failed", None, f"every replica of {deployment.name} already failed this request")
    # 5
    if len(deployment.queue) >= deployment.max_queue:
        unqueued = plan(view, now_s)
        retry_s = predict_wait_s(_slots_free_in_s(view, deployment, unqueued, now_s), ()) or deployment.service.mean_s
        words = f"{len(deployment.queue)} requests of {deployment.name} wait already (max_queue {deployment.max_queue})"
        if deployment.queue:
            return Refused("capacity_exhausted", max(retry_s, deployment.service.mean_s), words)
        # Nobody may queue at all: the request is refused, but a retry must find a replica.
        return _refuse_late(_with(view, deployment, ask), ask, retry_s, words, now_s)
    # 6
    queued = _with(view, deployment, ask)
    todo = plan(queued, now_s)
    ahead_s = [deployment.service.predict_s(each.est_tokens) for each in deployment.queue]
    eta_s = predict_wait_s(_slots_free_in_s(queued, deployment, todo, now_s), ahead_s)
    blocked = todo.blocked.get(deployment.name)
    if eta_s is None:
        words = blocked.reason if blocked else f"{deployment.name} has no replica to wait for"
        return Refused("capacity_exhausted", None, "there is no room for a replica", words)
    limit_s = min(ask.deadline_s - now_s, deployment.max_wait_s)
    wake, evict = _own(todo, deployment.name)
    if eta_s <= limit_s:
        position = len(deployment.queue) + 1
        return Wait(eta_s, blocked.reason if blocked else f"place {position} in the queue", wake, evict)
    # 7
    words = f"the predicted wait of {eta_s:.3g} s is longer than {max(0.0, limit_s):.3g} s"
    return _refuse_late(queued, ask, eta_s, words, now_s)


def may_use(tier: str, tenants: Sequence[str], tenant: str) -> bool:
    """Return whether a tenant may use a deployment: dedicated ones may name theirs."""
    return tier != "dedicated" or not tenants or tenant in tenants


def is_hopeless(deployment: DeploymentView, serving: Sequence[ReplicaView], ask: Ask) -> bool:
    """Return whether the request has failed on all that there is and no further replica may come."""
    return (
        bool(ask.excluded_replicas)
        and len(serving) >= max(deployment.max_replicas, deployment.num_warm)
        and all(each.is_open and each.replica_id in ask.excluded_replicas for each in serving)
    )


def predicted_wait_s(view: FleetView, deployment: DeploymentView, now_s: float) -> float | None:
    """Predict the wait of a request that would arrive now; None when it would be refused for ever."""
    opened = [each for each in view.of(deployment.name) if each.is_open]
    if not deployment.queue and any(each.slots.has_free for each in opened):
        return 0.0
    ask = Ask("", deployment.name, "", 0, now_s, now_s)
    queued = _with(view, deployment, ask)
    ahead_s = [deployment.service.predict_s(each.est_tokens) for each in deployment.queue]
    return predict_wait_s(_slots_free_in_s(queued, deployment, plan(queued, now_s), now_s), ahead_s)


def _refuse_late(queued: FleetView, ask: Ask, retry_s: float, words: str, now_s: float) -> Refused:
    todo = plan(queued, now_s)
    deployment = queued.deployments[ask.deployment]
    wake, evict = _own(todo, ask.deployment)
    since_s = deployment.demand.since_s if deployment.demand and deployment.demand.until_s > now_s else now_s
    blocked = todo.blocked.get(ask.deployment)
    return Refused(
        "deadline_exceeded" if ask.deadline_s <= now_s else "capacity_exhausted",
        retry_s,
        words,
        blocked.reason if blocked else "",
        wake,
        evict,
        Demand(since_s, now_s + retry_s + DEMAND_PATIENCE_S),
    )


def _own(todo: CapacityPlan, name: str) -> tuple[tuple[StartReplica, ...], tuple[DrainReplica, ...]]:
    return tuple(each for each in todo.starts if each.deployment == name), todo.drains


def _with(view: FleetView, deployment: DeploymentView, ask: Ask) -> FleetView:
    waiting = replace(deployment, queue=(*deployment.queue, ask))
    return replace(view, deployments={**view.deployments, deployment.name: waiting})


def _slots_free_in_s(view: FleetView, deployment: DeploymentView, todo: CapacityPlan, now_s: float) -> list[float]:
    """Return, for each slot that exists or is on its way, the predicted seconds until it is free."""
    learned_s = deployment.starts.learned_s
    drained = {each.replica_id for each in todo.drains}
    free_in_s: list[float] = []
    for each in view.of(deployment.name):
        if each.replica_id in drained:
            continue
        if each.status == "ready":
            free_in_s += [0.0] * max(0, each.slots.limit - each.slots.ongoing) if each.is_open else []
            free_in_s += [deployment.service.mean_s] * min(each.slots.ongoing, each.slots.limit)
        elif each.status == "starting":
            left_s = start_left_s(learned_s, now_s - each.since_s, deployment.start_timeout_s)
            free_in_s += [left_s] * each.slots.limit
    num_starts = sum(each.deployment == deployment.name for each in todo.starts)
    free_in_s += [learned_s] * (num_starts * deployment.slots_per_replica)
    blocked = todo.blocked.get(deployment.name)
    if blocked is not None and blocked.eta_s is not None:
        free_in_s += [blocked.eta_s + learned_s] * deployment.slots_per_replica
    if not free_in_s and blocked is None and deployment.unplaced is None:
        # A failed start is backing off, or the replica's health is being asked.
        free_in_s += [deployment.restarts.blocked_for_s(now_s) + learned_s] * deployment.slots_per_replica
    return free_in_s
