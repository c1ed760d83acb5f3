"""Which replicas to start and which to drain now, for everybody at once. Pure.

`plan` is asked after every change and at `check_at_s`. In order:

1. deleted deployments, replaced launches, surplus over the ceiling, and the idle beyond their keep-alive are drained;
2. what is wanted is listed: warm floors, then replacements, then deployments with waiters by the oldest waiter;
3. each gets memory if there is room now and if whoever stands before it in line still finds room later;
4. else it takes the memory of idle serverless replicas (longest idle first), else of busy ones after their quantum,
   which are drained and never cut; it keeps its place in line meanwhile, so that nobody starves.

Never a victim: dedicated replicas, those within `min_replicas`, starting ones, and the deployment's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stoker.fleet.domain.eviction import idle_exit, may_leave_at_s
from stoker.fleet.domain.placement import Resources, arithmetic
from stoker.fleet.domain.views import DeploymentView, FleetView, ReplicaView

STOP_S = 0.5  # predicted time of a terminated engine to end and give its memory back


@dataclass(frozen=True, slots=True)
class StartReplica:
    deployment: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrainReplica:
    replica_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """A wanted replica that cannot start yet.

    Attributes:
        eta_s: predicted seconds until its start begins; None: never, as things are declared.
        reason: with the arithmetic.
    """

    eta_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What to do now.

    Attributes:
        blocked: by deployment, its first replica (or its warm floor) that found no room.
        check_at_s: monotonic time to ask again when nothing happens before; None: only after a change.
    """

    starts: tuple[StartReplica, ...] = ()
    drains: tuple[DrainReplica, ...] = ()
    blocked: Mapping[str, Blocked] = field(default_factory=dict)
    check_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Want:
    deployment: DeploymentView
    count: int
    reason: str
    urgency: int  # 0 warm floor or replacement, 1 first replica, 2 one more
    since_s: float


def plan(view: FleetView, now_s: float) -> CapacityPlan:
    """Decide starts and drains. Carrying them out and asking again at once changes nothing more."""
    return _Planner(view, now_s).run()


class _Planner:
    def __init__(self, view: FleetView, now_s: float) -> None:
        self._view = view
        self._now_s = now_s
        self._live: dict[str, list[ReplicaView]] = {name: [] for name in view.deployments}
        for replica in view.replicas:
            if replica.is_live:
                self._live.setdefault(replica.deployment, []).append(replica)
        self._drains: dict[str, DrainReplica] = {}
        self._starts: list[StartReplica] = []
        self._blocked: dict[str, Blocked] = {}
        self._checks: list[float] = []

    def run(self) -> CapacityPlan:
        for deployment in self._view.deployments.values():
            self._drain_unwanted(deployment)
        wants = [want for each in self._view.deployments.values() if (want := self._want(each)) is not None]
        wants.sort(key=lambda want: (want.urgency, want.since_s))
        self._allocate(wants)
        return CapacityPlan(
            tuple(self._starts),
            tuple(self._drains.values()),
            self._blocked,
            min((at_s for at_s in self._checks if at_s > self._now_s), default=None),
        )

    # ------------------------------------------------------------------ 1. who must go

    def _drain_unwanted(self, deployment: DeploymentView) -> None:
        serving = [each for each in self._live[deployment.name] if each.status in ("ready", "starting")]
        if deployment.is_retired:
            for each in serving:
                self._drain(each, f"{deployment.name} was deleted")
            return
        current = [each for each in serving if each.is_current]
        replaced = [each for each in serving if not each.is_current]
        num_ready = sum(each.status == "ready" for each in current)
        # A replaced launch that is not ready yet has nothing to hand over.
        for each in [each for each in replaced if each.status == "starting"]:
            self._drain(each, "its deployment changed while it started")
        replaced = [each for each in replaced if each.status == "ready"]
        num_keep = max(0, self._num_rolled(deployment, replaced) - num_ready)
        for each in sorted(replaced, key=_least_used)[: len(replaced) - num_keep]:
            self._drain(each, "replaced by a replica of the changed deployment")
        ceiling = max(deployment.max_replicas, deployment.num_warm)
        for each in sorted(current, key=_least_used)[: max(0, len(current) - ceiling)]:
            self._drain(each, f"more than {ceiling} replicas")
        self._drain_idle(deployment)

    def _num_rolled(self, deployment: DeploymentView, replaced: list[ReplicaView]) -> int:
        """Return how many current replicas must stand before the replaced ones may go."""
        ceiling = max(deployment.max_replicas, deployment.num_warm)
        return min(ceiling, max(deployment.num_warm, len(replaced)))

    def _drain_idle(self, deployment: DeploymentView) -> None:
        if deployment.tier == "dedicated" or deployment.queue:
            return
        ready = [each for each in self._live[deployment.name] if each.status == "ready" and each.is_current]
        staying = [each for each in ready if each.replica_id not in self._drains]
        num_spare = len(staying) - deployment.num_warm
        for each in sorted(staying, key=_longest_idle)[: max(0, num_spare)]:
            if each.idle_since_s is None:
                continue
            left_s = idle_exit(deployment.keep_alive, each.idle_since_s, self._now_s, deployment.promised_at_s)
            if left_s <= 0:
                self._drain(each, f"idle for {self._now_s - each.idle_since_s:.3g} s")
            else:
                self._checks.append(self._now_s + left_s)

    def _drain(self, replica: ReplicaView, reason: str) -> None:
        self._drains.setdefault(replica.replica_id, DrainReplica(replica.replica_id, reason))

    # ------------------------------------------------------------------ 2. who must come

    def _want(self, deployment: DeploymentView) -> _Want | None:
        if deployment.is_retired or deployment.unplaced is not None:
            return None
        serving = [
            each
            for each in self._live[deployment.name]
            if each.status in ("ready", "starting") and each.replica_id not in self._drains
        ]
        current = [each for each in serving if each.is_current]
        replaced = [each for each in serving if not each.is_current]
        floor = deployment.num_warm - len(current)
        roll = self._num_rolled(deployment, replaced) - len(current) if replaced else 0
        demand, since_s = self._demand(deployment, serving)
        count = max(floor, roll, demand)
        if count <= 0:
            return None
        if deployment.restarts.num_failures:
            # What failed last time is tried by one replica, not by all of them.
            if any(each.status == "starting" for each in current):
                return None
            count = 1
        if deployment.restarts.blocked_for_s(self._now_s) > 0:
            assert deployment.restarts.not_before_s is not None
            self._checks.append(deployment.restarts.not_before_s)
            return None
        if floor > 0:
            return _Want(deployment, count, f"{deployment.num_warm} kept warm", 0, 0.0)
        if roll >= demand:
            return _Want(deployment, count, "its deployment changed", 0, 0.0)
        num_waiting = max(1, len(deployment.queue))
        reason = f"{num_waiting} waiting, {len(serving)} serving"
        return _Want(deployment, count, reason, 2 if serving else 1, since_s)

    def _demand(self, deployment: DeploymentView, serving: list[ReplicaView]) -> tuple[int, float]:
        """Return how many more replicas the queue calls for, and since when."""
        num_waiting = len(deployment.queue)
        since_s = deployment.queue[0].queued_at_s if deployment.queue else self._now_s
        if deployment.turn_ended_at_s is not None:
            since_s = max(since_s, deployment.turn_ended_at_s)
        refused = deployment.demand
        if refused is not None and refused.until_s > self._now_s and not serving:
            num_waiting = max(1, num_waiting)
            since_s = min(since_s, refused.since_s)
            self._checks.append(refused.until_s)
        num_coming = sum(each.slots.limit for each in serving if each.status == "starting")
        num_coming += sum(
            max(0, each.slots.limit - each.slots.ongoing)
            for each in serving
            if each.is_open and any(each.replica_id not in ask.excluded_replicas for ask in deployment.queue)
        )
        missing = math.ceil(max(0, num_waiting - num_coming) / max(1, deployment.slots_per_replica))
        return min(missing, deployment.max_replicas - len(serving)), since_s

    # ------------------------------------------------------------------ 3. and 4. who gets memory

    def _allocate(self, wants: list[_Want]) -> None:
        now: dict[str, Resources] = {}
        later: dict[str, Resources] = {}
        for name, replicas in self._live.items():
            now[name] = sum((each.held for each in replicas), Resources())
            staying = [each for each in replicas if not self._is_leaving(each)]
            later[name] = sum((each.held for each in staying), Resources())
        for want in wants:
            for number in range(want.count):
                if not self._admit(want, number, now, later):
                    break

    def _is_leaving(self, replica: ReplicaView) -> bool:
        return replica.status in ("draining", "stopping") or replica.replica_id in self._drains

    def _admit(self, want: _Want, number: int, now: dict[str, Resources], later: dict[str, Resources]) -> bool:
        """Start one replica, or make room for it and keep its place in line."""
        name, need = want.deployment.name, want.deployment.need
        own = later.get(name, Resources())
        if need.fits_in(self._view.room_for(name, now)) and need.fits_in(self._view.room_for(name, later)):
            now[name] = now.get(name, Resources()) + need
            later[name] = own + need
            self._starts.append(StartReplica(name, want.reason))
            return True
        if not need.fits_in(self._view.room_for(name, {name: own} if own != Resources() else {})):
            self._block_for_ever(want, number, own)
            return False
        eta_s = self._make_room(want, later)
        if eta_s is None:
            # Nobody may go: starts under way or warm floors hold the memory. Ask again after the next change.
            eta_s = self._next_change_s()
        if want.urgency < 2 and number == 0:
            free = self._view.room_for(name, now)
            reason = f"waiting for memory: {_need_words(self._view, want.deployment)}, {_free_words(free)} now"
            self._blocked.setdefault(name, Blocked(eta_s, reason))
        later[name] = own + need
        return False

    def _block_for_ever(self, want: _Want, number: int, own: Resources) -> None:
        deployment = want.deployment
        replaced = [
            each
            for each in self._live[deployment.name]
            if each.status == "ready" and not each.is_current and each.replica_id not in self._drains
        ]
        if number == 0 and replaced and want.urgency == 0:
            # There will never be room for both: make before break is impossible, so the old one goes first.
            self._drain(replaced[0], "no room for the old and the new replica at once")
        elif number == 0 and own == Resources():
            self._blocked[deployment.name] = Blocked(None, _need_words(self._view, deployment))

    def _make_room(self, want: _Want, later: dict[str, Resources]) -> float | None:
        """Choose victims; drain them once all of them may go. Returns the seconds until their memory is free."""
        name, need = want.deployment.name, want.deployment.need
        freed = dict(later)
        chosen: list[tuple[ReplicaView, float]] = []
        for victim, leave_at_s in self._victims(want):
            if need.fits_in(self._view.room_for(name, freed)):
                break
            rest = freed[victim.deployment] - victim.held
            before = self._view.room_for(name, freed)
            freed[victim.deployment] = rest
            if self._view.room_for(name, freed) == before:
                freed[victim.deployment] = rest + victim.held
                continue
            chosen.append((victim, leave_at_s))
        if not need.fits_in(self._view.room_for(name, freed)):
            return None
        wait_s = max((leave_at_s - self._now_s for _, leave_at_s in chosen), default=0.0)
        if wait_s > 0:
            self._checks.append(self._now_s + wait_s)
        else:
            for victim, _ in chosen:
                self._drain(victim, f"its memory is needed by {name}")
        later.update(freed)
        owners = [(victim, self._view.deployments[victim.deployment]) for victim, _ in chosen]
        busy_s = [owner.service.mean_s for victim, owner in owners if victim.idle_since_s is None or owner.queue]
        return max(0.0, wait_s) + max(busy_s, default=0.0) + STOP_S

    def _victims(self, want: _Want) -> list[tuple[ReplicaView, float]]:
        """Return who may make room: those who may go soonest, among them the idle first and the longest idle first."""
        found: list[tuple[tuple[float, bool, float], ReplicaView, float]] = []
        for name, replicas in self._live.items():
            deployment = self._view.deployments.get(name)
            if deployment is None or name == want.deployment.name or deployment.tier == "dedicated":
                continue
            ready = [each for each in replicas if each.status == "ready" and each.replica_id not in self._drains]
            num_spare = len(ready) - deployment.num_warm
            for each in sorted(ready, key=_longest_idle)[: max(0, num_spare)]:
                idle_since_s = None if deployment.queue else each.idle_since_s
                if want.urgency == 2 and idle_since_s is None:
                    continue  # one more replica is no reason to close a busy one
                leave_at_s = may_leave_at_s(
                    each.since_s, idle_since_s, deployment.starts.learned_s, self._view.quantum_s
                )
                order_s = each.since_s if idle_since_s is None else idle_since_s
                key = (max(leave_at_s, self._now_s), idle_since_s is None, order_s)
                found.append((key, each, leave_at_s))
        found.sort(key=lambda each: (each[0], each[1].replica_id))
        return [(replica, leave_at_s) for _, replica, leave_at_s in found]

    def _next_change_s(self) -> float:
        lefts_s = [
            max(0.0, self._view.deployments[name].starts.learned_s - (self._now_s - each.since_s))
            for name, replicas in self._live.items()
            for each in replicas
            if each.status == "starting" and name in self._view.deployments
        ]
        return min(lefts_s, default=0.0) + self._view.quantum_s


def never_fits(view: FleetView, deployment: DeploymentView) -> str | None:
    """Return the arithmetic when not even one replica fits beside the reservations, None when it may."""
    if deployment.unplaced is not None:
        return deployment.unplaced
    if deployment.need.fits_in(view.room_for(deployment.name, {})):
        return None
    return _need_words(view, deployment)


def exceeds_pool(view: FleetView, deployment: DeploymentView) -> bool:
    """Return whether one replica is larger than the whole pool, reservations aside."""
    return not deployment.need.fits_in(view.pool)


def _need_words(view: FleetView, deployment: DeploymentView) -> str:
    words = arithmetic(deployment.name, deployment.need, view.pool, view.reserved.values())
    return f"{words} ({deployment.need_arithmetic})" if deployment.need_arithmetic else words


def _free_words(free: Resources) -> str:
    return f"{max(0, free.memory_bytes) // 2**20} MiB free"


def _least_used(replica: ReplicaView) -> tuple[bool, int, float]:
    return replica.status == "ready", replica.slots.ongoing, replica.since_s


def _longest_idle(replica: ReplicaView) -> tuple[bool, float]:
    return replica.idle_since_s is None, replica.idle_since_s or 0.0
