"""The fleet's domain alone in a discrete simulation: determinism, budget, fairness, for any traffic."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.fleet.domain import lifecycle as life
from stoker.fleet.domain.admission import Granted, Refused, Wait, choose_slot, decide
from stoker.fleet.domain.capacity import DrainReplica, StartReplica, plan
from stoker.fleet.domain.estimates import ServiceTimes, StartTimes
from stoker.fleet.domain.placement import Reservation, Resources, place
from stoker.fleet.domain.restarts import RestartPolicy, Restarts, after_failure, after_ready, after_success
from stoker.fleet.domain.slots import SlotTable
from stoker.fleet.domain.views import Ask, DeploymentView, FleetView, ReplicaView

POLICY = RestartPolicy(3, 20.0)


@dataclass
class Replica:
    deployment: str
    need: Resources
    slots: SlotTable
    state: life.ReplicaState = field(default_factory=life.ReplicaState)
    since_s: float = 0.0
    idle_since_s: float | None = None


@dataclass
class Simulation:
    """Carries out what the domain decides on a clock of its own; the log holds each decision and event."""

    pool: Resources
    deployments: dict[str, DeploymentView]
    seed: int
    failure_ratio: float = 0.0
    now_s: float = 0.0
    replicas: dict[str, Replica] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.order = itertools.count()
        self.agenda: list[tuple[float, int, tuple[str, ...]]] = []
        wanted = [Reservation(each.name, each.tier, each.need, each.num_warm) for each in self.deployments.values()]
        placement = place(self.pool, wanted)
        self.reserved = placement.placed
        for name, words in placement.unplaced.items():
            self.deployments[name] = replace(self.deployments[name], unplaced=words)

    # ------------------------------------------------------------------ time

    def at(self, after_s: float, *what: str) -> None:
        heapq.heappush(self.agenda, (self.now_s + after_s, next(self.order), what))

    def run(self, until_s: float) -> None:
        self.settle()
        while self.agenda and self.agenda[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self.agenda)
            getattr(self, f"on_{what[0]}")(*what[1:])
            self.settle()
        self.now_s = until_s

    def settle(self) -> None:
        for _ in range(100):
            for name in self.deployments:
                self.serve(name)
            self.expire()
            todo = plan(self.view(), self.now_s)
            if not todo.starts and not todo.drains:
                if todo.check_at_s is not None:
                    self.at(todo.check_at_s - self.now_s, "nothing")
                for name, blocked in todo.blocked.items():
                    if blocked.eta_s is None:
                        self.fail_queue(name, "no room")
                return
            self.carry_out(todo.starts, todo.drains)
        raise AssertionError("a plan that never settles")

    def expire(self) -> None:
        for name, each in self.deployments.items():
            late = [ask for ask in each.queue if min(ask.deadline_s, ask.queued_at_s + each.max_wait_s) <= self.now_s]
            for ask in late:
                self.outcomes[ask.request_id] = "expired"
            if late:
                self.change(name, queue=tuple(ask for ask in each.queue if ask not in late))

    # ------------------------------------------------------------------ values

    def view(self) -> FleetView:
        replicas = tuple(
            ReplicaView(
                name, each.deployment, each.state.status, each.since_s, each.idle_since_s, each.slots,
                Resources() if each.state.is_final else each.need,
            )
            for name, each in self.replicas.items()
        )  # fmt: skip
        used = sum((each.held for each in replicas), Resources())
        assert used.fits_in(self.pool), f"over budget: {used}"
        return FleetView(self.pool, dict(self.deployments), replicas, self.reserved)

    def change(self, name: str, **changes: object) -> None:
        self.deployments[name] = replace(self.deployments[name], **changes)  # type: ignore[arg-type]

    def note(self, *what: object) -> None:
        self.log.append(json.dumps([round(self.now_s, 9), *what], default=str))

    # ------------------------------------------------------------------ effects

    def carry_out(self, starts: tuple[StartReplica, ...], drains: tuple[DrainReplica, ...]) -> None:
        for each in drains:
            self.step(each.replica_id, life.DrainOrdered(each.reason, 30.0))
        for each in starts:
            deployment = self.deployments[each.deployment]
            name = f"{each.deployment}-{next(self.order)}"
            self.replicas[name] = Replica(each.deployment, deployment.need, SlotTable(deployment.slots_per_replica))
            self.step(name, life.StartOrdered(each.reason, 30.0, 1.0))

    def step(self, name: str, event: life.ReplicaEvent) -> None:
        replica = self.replicas[name]
        before = replica.state
        replica.state, effects = life.step(before, event)
        self.note(name, life.event_to_json(event), before.status, replica.state.status)
        status = replica.state.status
        deployment = self.deployments[replica.deployment]
        if status != before.status:
            took_s, replica.since_s = self.now_s - replica.since_s, self.now_s
            replica.idle_since_s = self.now_s if status == "ready" else None
            if status == "ready":
                self.change(
                    replica.deployment,
                    starts=deployment.starts.observe(took_s),
                    restarts=after_ready(deployment.restarts),
                    demand=None,
                )
            elif before.status == "ready":
                self.change(replica.deployment, turn_ended_at_s=self.now_s)
        for effect in effects:
            match effect:
                case life.LaunchProcess():
                    start_s = self.random.uniform(0.5, 6.0)
                    fails = self.random.random() < self.failure_ratio
                    self.at(start_s, "exit" if fails else "healthy", name)
                case life.Terminate():
                    self.at(0.1, "exit", name)
                case life.StartTimer(kind="drain", after_s=after_s):
                    self.at(after_s, "drain_timeout", name)
                case life.FailWaiters(words):
                    restarts = after_failure(deployment.restarts, POLICY, words, self.now_s)
                    self.change(replica.deployment, restarts=restarts)
                    others = [each for each in self.replicas.values() if each.deployment == replica.deployment]
                    if not any(each.state.status in ("ready", "starting") for each in others):
                        self.fail_queue(replica.deployment, "failed")
                case _:
                    pass
        if status == "draining" and replica.slots.ongoing == 0:
            self.step(name, life.Drained())

    def fail_queue(self, name: str, why: str) -> None:
        for each in self.deployments[name].queue:
            self.outcomes[each.request_id] = why
        self.change(name, queue=())

    def serve(self, name: str) -> None:
        queue = list(self.deployments[name].queue)
        for each in list(queue):
            opened = [
                (replica_id, replica.slots)
                for replica_id, replica in self.replicas.items()
                if replica.deployment == name and replica.state.status == "ready"
            ]
            found = choose_slot(opened, each.tenant, each.session)
            if found is None:
                break
            queue.remove(each)
            self.change(name, queue=tuple(queue))
            self.grant(each, *found)

    def grant(self, ask: Ask, replica_id: str, slot: int) -> None:
        replica = self.replicas[replica_id]
        assert replica.state.status == "ready"
        replica.slots.take(slot, ask.tenant, ask.session)  # asserts that the slot is free
        replica.idle_since_s = None
        self.note("grant", ask.request_id, replica_id, slot)
        self.at(self.random.uniform(0.05, 3.0), "release", ask.request_id, replica_id, str(slot))

    # ------------------------------------------------------------------ what happens

    def on_nothing(self) -> None: ...

    def on_ask(self, request_id: str, name: str, within_s: str) -> None:
        ask = Ask(request_id, name, f"t{len(request_id) % 2}", 0,
                  self.now_s + float(within_s), self.now_s)  # fmt: skip
        decision = decide(self.view(), ask, self.now_s)
        self.note(request_id, type(decision).__name__, decision.reason)
        match decision:
            case Granted(replica_id, slot):
                self.grant(ask, replica_id, slot)
            case Wait():
                self.change(name, queue=(*self.deployments[name].queue, ask))
                self.at(min(float(within_s), self.deployments[name].max_wait_s), "nothing")
                self.carry_out(decision.wake, decision.evict)
            case Refused():
                self.outcomes[request_id] = "refused"
                self.change(name, demand=decision.demand)
                self.carry_out(decision.wake, decision.evict)

    def on_release(self, request_id: str, replica_id: str, slot: str) -> None:
        self.outcomes[request_id] = "served"
        replica = self.replicas[replica_id]
        replica.slots.give_back(int(slot))
        deployment = self.deployments[replica.deployment]
        self.change(
            replica.deployment,
            service=deployment.service.observe(1.0, 10),
            restarts=after_success(deployment.restarts),
        )
        if replica.slots.ongoing == 0:
            if replica.state.status == "ready":
                replica.idle_since_s = self.now_s
            elif replica.state.status == "draining":
                self.step(replica_id, life.Drained())

    def on_healthy(self, name: str) -> None:
        self.step(name, life.HealthPassed())

    def on_exit(self, name: str) -> None:
        self.step(name, life.ProcessExited(1, None, "boom"))

    def on_drain_timeout(self, name: str) -> None:
        self.step(name, life.DrainTimedOut(self.replicas[name].slots.ongoing))


def deployment(name: str, parts: tuple[str, int, int, int, int]) -> DeploymentView:
    tier, memory, slots, most, warm = parts
    is_dedicated = tier == "dedicated"
    return DeploymentView(
        name, tier, (), max(1, warm) if is_dedicated else min(warm, most), max(1, warm) if is_dedicated else most,
        slots, 8, 300.0, 5.0, Resources(memory), "", StartTimes(2.0), 30.0, ServiceTimes(), Restarts(),
    )  # fmt: skip


deployments = st.lists(
    st.tuples(
        st.sampled_from(["serverless", "serverless", "serverless", "dedicated"]),
        st.integers(1, 7),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([0, 0, 1]),
    ),
    min_size=1,
    max_size=4,
)
traffic = st.lists(
    st.tuples(st.floats(0, 60), st.integers(0, 3), st.sampled_from([1.0, 10.0, 500.0])), min_size=1, max_size=40
)


def simulate(parts: list, asked: list, seed: int, failure_ratio: float) -> Simulation:
    declared = {f"d{i}": deployment(f"d{i}", each) for i, each in enumerate(parts)}
    simulation = Simulation(Resources(10), declared, seed, failure_ratio)
    for number, (at_s, which, within_s) in enumerate(asked):
        simulation.at(at_s, "ask", f"r{number}", f"d{which % len(parts)}", str(within_s))
    simulation.run(2000.0)
    return simulation


@settings(max_examples=150, deadline=None)
@given(deployments, traffic, st.integers(0, 2**16), st.sampled_from([0.0, 0.3]))
def test_law_nobody_waits_for_ever_memory_is_never_over_budget_and_no_slot_is_granted_twice(
    parts: list, asked: list, seed: int, failure_ratio: float
) -> None:
    simulation = simulate(parts, asked, seed, failure_ratio)
    assert len(simulation.outcomes) == len(asked)
    assert all(not each.queue for each in simulation.deployments.values())
    live = [each for each in simulation.replicas.values() if not each.state.is_final]
    assert all(each.slots.ongoing == 0 for each in live)
    # Long after the last request only warm floors are left.
    for each in simulation.deployments.values():
        left = sum(replica.deployment == each.name for replica in live)
        assert left <= (0 if each.unplaced else each.num_warm)


@settings(max_examples=60, deadline=None)
@given(deployments, traffic, st.integers(0, 2**16))
def test_law_patient_requests_are_all_served_when_nothing_fails_and_everything_fits_alone(
    parts: list, asked: list, seed: int
) -> None:
    patient = [(at_s, which, 500.0) for at_s, which, _ in asked]
    alone = [("serverless", memory, slots, most, 0) for _, memory, slots, most, _ in parts]
    simulation = simulate(alone, patient, seed, 0.0)
    assert set(simulation.outcomes.values()) <= {"served", "refused"}
    # The only refusals left are those of a full queue.
    refused = [json.loads(line) for line in simulation.log if '"Refused"' in line]
    assert all("wait already" in each[3] for each in refused)


@settings(max_examples=40, deadline=None)
@given(deployments, traffic, st.integers(0, 2**16), st.sampled_from([0.0, 0.3]))
def test_law_the_same_trace_and_seed_give_the_same_decision_log_byte_for_byte(
    parts: list, asked: list, seed: int, failure_ratio: float
) -> None:
    first, second = (simulate(parts, asked, seed, failure_ratio) for _ in range(2))
    assert "\n".join(first.log).encode() == "\n".join(second.log).encode()


@pytest.mark.parametrize("num_models", [3, 5])
def test_all_cold_at_once_with_room_for_one_are_served_in_turn(num_models: int) -> None:
    parts = [("serverless", 7, 1, 1, 0)] * num_models
    asked = [(0.0, which, 500.0) for which in range(num_models)] * 2
    simulation = simulate(parts, asked, 1, 0.0)
    assert set(simulation.outcomes.values()) == {"served"}
