"""Admission and capacity as tables over hand-made moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stoker.fleet.domain.admission import Decision, Granted, Refused, Wait, decide
from stoker.fleet.domain.capacity import plan
from stoker.fleet.domain.estimates import StartTimes
from stoker.fleet.domain.placement import Reservation, Resources
from stoker.fleet.domain.restarts import Restarts
from stoker.fleet.domain.slots import SlotTable
from stoker.fleet.domain.views import Ask, Demand, DeploymentView, FleetView, ReplicaView

MIB = 2**20
NOW_S = 1000.0


def deployment(name: str, **changes: Any) -> DeploymentView:
    view = DeploymentView(
        name=name,
        tier="serverless",
        tenants=(),
        num_warm=0,
        max_replicas=1,
        slots_per_replica=1,
        max_queue=4,
        max_wait_s=60.0,
        keep_alive=300.0,
        need=Resources(100 * MIB),
        need_arithmetic="",
        starts=StartTimes(2.0),
        start_timeout_s=120.0,
    )
    return replace(view, **changes)


def replica(name: str, of: str, status: str = "ready", *, busy: int = 0, limit: int = 1, **changes: Any) -> ReplicaView:
    slots = SlotTable(limit)
    for slot in range(busy):
        slots.take(slot, "acme", None)
    idle_since_s = NOW_S - 50 if status == "ready" and not busy else None
    held = Resources() if status in ("stopped", "failed") else Resources(100 * MIB)
    view = ReplicaView(name, of, status, NOW_S - 100, idle_since_s, slots, held)  # type: ignore[arg-type]
    return replace(view, **changes)


def fleet(*parts: DeploymentView | ReplicaView, pool_mib: int = 1000) -> FleetView:
    deployments = {each.name: each for each in parts if isinstance(each, DeploymentView)}
    kinds = {"serverless": "min_replicas", "dedicated": "dedicated"}
    return FleetView(
        pool=Resources(pool_mib * MIB),
        deployments=deployments,
        replicas=tuple(each for each in parts if isinstance(each, ReplicaView)),
        reserved={
            name: Reservation(name, kinds[each.tier], each.need, each.num_warm)
            for name, each in deployments.items()
            if each.num_warm
        },
    )


def ask(name: str = "a", *, within_s: float = 60.0, tenant: str = "acme", **changes: Any) -> Ask:
    return replace(Ask("req", name, tenant, 0, NOW_S + within_s, NOW_S), **changes)


def waiting(name: str, *, for_s: float = 1.0, number: int = 1) -> tuple[Ask, ...]:
    return tuple(replace(ask(name), request_id=f"w{i}", queued_at_s=NOW_S - for_s) for i in range(number))


def brief(decision: Decision) -> tuple[object, ...]:
    match decision:
        case Granted(replica_id, slot):
            return ("granted", replica_id, slot)
        case Wait():
            return (
                "wait",
                round(decision.eta_s, 2),
                [each.deployment for each in decision.wake],
                [each.replica_id for each in decision.evict],
            )
        case Refused():
            retry_s = decision.retry_after_s
            return ("refused", decision.code, None if retry_s is None else round(retry_s, 2), len(decision.wake))


A, B = deployment("a"), deployment("b")
OWN = deployment("own", tier="dedicated", tenants=("acme",), num_warm=1)


@pytest.mark.parametrize(
    ("view", "asked", "expected"),
    [
        pytest.param(fleet(A, replica("a1", "a")), ask(), ("granted", "a1", 0), id="a ready replica grants"),
        pytest.param(fleet(A), ask(), ("wait", 2.0, ["a"], []), id="a cold one is woken"),
        pytest.param(
            fleet(A, replica("a1", "a", "starting", since_s=NOW_S - 1.5)),
            ask(),
            ("wait", 0.5, [], []),
            id="a start under way is joined, not doubled",
        ),
        pytest.param(
            fleet(replace(A, queue=waiting("a")), replica("a1", "a", "starting", since_s=NOW_S - 1.5)),
            ask(),
            ("wait", 1.5, [], []),
            id="behind one in the queue: one service time later",
        ),
        pytest.param(
            fleet(replace(A, queue=waiting("a"), max_replicas=2), replica("a1", "a", "starting", since_s=NOW_S)),
            ask(),
            ("wait", 2.0, ["a"], []),
            id="more waiters than the starting one carries: another one",
        ),
        pytest.param(
            fleet(replace(A, queue=waiting("a")), replica("a1", "a")),
            ask(),
            ("wait", 1.0, [], []),
            id="nobody overtakes the queue",
        ),
        pytest.param(fleet(A, replica("a1", "a", busy=1)), ask(), ("wait", 1.0, [], []), id="a full one is waited for"),
        pytest.param(
            fleet(A, replica("a1", "a", is_suspect=True)),
            ask(),
            ("wait", 2.0, [], []),
            id="a suspect one grants nothing",
        ),
        pytest.param(
            fleet(A, replica("a1", "a", "draining", busy=1)),
            ask(),
            ("wait", 2.0, ["a"], []),
            id="a draining one neither",
        ),
        pytest.param(
            fleet(A), ask(within_s=1.0), ("refused", "capacity_exhausted", 2.0, 1), id="too late: refused, and woken"
        ),
        pytest.param(
            fleet(replace(A, max_wait_s=1.0)),
            ask(),
            ("refused", "capacity_exhausted", 2.0, 1),
            id="longer than max_wait: refused, and woken",
        ),
        pytest.param(
            fleet(replace(A, queue=waiting("a", number=4)), replica("a1", "a", busy=1)),
            ask(),
            ("refused", "capacity_exhausted", 1.0, 0),
            id="the queue is full",
        ),
        pytest.param(fleet(OWN, replica("o1", "own")), ask("own"), ("granted", "o1", 0), id="its own tenant"),
        pytest.param(
            fleet(OWN, replica("o1", "own")),
            ask("own", tenant="bolt"),
            ("refused", "forbidden", None, 0),
            id="another tenant",
        ),
        pytest.param(
            fleet(A, OWN, replica("o1", "own"), pool_mib=150),
            ask(),
            ("refused", "capacity_exhausted", None, 0),
            id="the pool is reserved, nothing but a change helps",
        ),
        pytest.param(
            fleet(replace(A, need=Resources(2000 * MIB))),
            ask(),
            ("refused", "insufficient_memory", None, 0),
            id="larger than the machine",
        ),
        pytest.param(
            fleet(A, B, replica("b1", "b"), pool_mib=100),
            ask(),
            ("wait", 2.5, [], ["b1"]),
            id="memory short: the idle one goes",
        ),
        pytest.param(
            fleet(A, B, replica("b1", "b", busy=1, since_s=NOW_S - 4), pool_mib=100),
            ask(),
            ("wait", 9.5, [], []),
            id="memory short and the other busy: its quantum, its request, its end, then the start",
        ),
        pytest.param(
            fleet(A, replace(B, queue=waiting("b")), replica("b1", "b", since_s=NOW_S), pool_mib=100),
            ask(),
            ("wait", 13.5, [], []),
            id="ready but about to serve its queue is not idle",
        ),
        pytest.param(
            fleet(replace(A, restarts=Restarts(3, NOW_S + 20, True, "bad tensor"))),
            ask(),
            ("refused", "engine_failed", 22.0, 0),
            id="the circuit is open",
        ),
        pytest.param(
            fleet(replace(A, restarts=Restarts(3, NOW_S + 20, True, "bad tensor")), replica("a1", "a", busy=1)),
            ask(),
            ("wait", 1.0, [], []),
            id="the circuit is open, but an older replica serves",
        ),
        pytest.param(
            fleet(replace(A, restarts=Restarts(1, NOW_S + 0.5, False, "oops"))),
            ask(),
            ("wait", 2.5, [], []),
            id="one failure: waits for the backoff and the start",
        ),
        pytest.param(
            fleet(A, replica("a1", "a")),
            ask(excluded_replicas=frozenset({"a1"})),
            ("refused", "engine_failed", None, 0),
            id="it already failed on all there is",
        ),
        pytest.param(
            fleet(replace(A, max_replicas=2), replica("a1", "a")),
            ask(excluded_replicas=frozenset({"a1"})),
            ("wait", 0.0, ["a"], []),
            id="it already failed on one: another is started",
        ),
    ],
)
def test_decide(view: FleetView, asked: Ask, expected: tuple[object, ...]) -> None:
    decision = decide(view, asked, NOW_S)
    assert brief(decision) == expected
    assert decision.reason


def todo(view: FleetView) -> tuple[list[str], list[str], float | None]:
    planned = plan(view, NOW_S)
    check_s = None if planned.check_at_s is None else round(planned.check_at_s - NOW_S, 2)
    return [each.deployment for each in planned.starts], [each.replica_id for each in planned.drains], check_s


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(fleet(A, B), ([], [], None), id="nobody asks: nothing runs"),
        pytest.param(fleet(replace(A, num_warm=2, max_replicas=3)), (["a", "a"], [], None), id="warm floor"),
        pytest.param(fleet(A, replica("a1", "a")), ([], [], 250.0), id="idle within its keep-alive"),
        pytest.param(fleet(replace(A, keep_alive=40.0), replica("a1", "a")), ([], ["a1"], None), id="idle beyond it"),
        pytest.param(
            fleet(replace(A, keep_alive=40.0, promised_at_s=NOW_S + 2), replica("a1", "a")),
            ([], [], 5.0),
            id="idle beyond it, but somebody was told to come back",
        ),
        pytest.param(
            fleet(replace(A, keep_alive=40.0, promised_at_s=NOW_S - 3), replica("a1", "a")),
            ([], ["a1"], None),
            id="idle beyond it, and nobody came back",
        ),
        pytest.param(
            fleet(replace(A, keep_alive=40.0, num_warm=1), replica("a1", "a")), ([], [], None), id="but it is the floor"
        ),
        pytest.param(
            fleet(replace(A, keep_alive=40.0), replica("a1", "a", busy=1)), ([], [], None), id="busy never idles out"
        ),
        pytest.param(
            fleet(OWN, replica("o1", "own", idle_since_s=0.0)), ([], [], None), id="dedicated never idles out"
        ),
        pytest.param(
            fleet(A, replica("a1", "a", busy=1), replica("a2", "a")),
            ([], ["a2"], None),
            id="surplus: the idle one goes",
        ),
        pytest.param(
            fleet(replace(A, is_retired=True), replica("a1", "a", busy=1)), ([], ["a1"], None), id="deleted: all go"
        ),
        pytest.param(
            fleet(replace(OWN, num_warm=1), replica("o1", "own", is_current=False)),
            (["own"], [], None),
            id="changed: the new one first",
        ),
        pytest.param(
            fleet(OWN, replica("o1", "own", is_current=False), replica("o2", "own")),
            ([], ["o1"], None),
            id="changed: the old one goes when the new one is ready",
        ),
        pytest.param(
            fleet(OWN, replica("o1", "own", is_current=False), pool_mib=150),
            ([], ["o1"], None),
            id="changed and no room for both, ever: the old one goes first",
        ),
        pytest.param(
            fleet(replace(A, queue=waiting("a")), replica("a1", "a", "failed")),
            (["a"], [], None),
            id="failed is nothing",
        ),
        pytest.param(
            fleet(replace(A, queue=waiting("a")), B, replica("b1", "b", "stopping"), pool_mib=100),
            ([], [], None),
            id="memory on its way back is waited for, nobody else goes",
        ),
        pytest.param(
            fleet(
                replace(A, queue=waiting("a", for_s=5)),
                replace(B, queue=waiting("b", for_s=9)),
                pool_mib=100,
            ),
            (["b"], [], None),
            id="whoever waited longest comes first",
        ),
        pytest.param(
            fleet(
                replace(A, queue=waiting("a", for_s=5)),
                replace(B, queue=waiting("b", for_s=9), turn_ended_at_s=NOW_S - 1),
                pool_mib=100,
            ),
            (["a"], [], None),
            id="whoever had a turn stands in line from its end",
        ),
        pytest.param(
            fleet(
                replace(A, queue=waiting("a", for_s=9), need=Resources(150 * MIB)),
                replace(B, queue=waiting("b", for_s=5), need=Resources(50 * MIB)),
                deployment("c"),
                replica("c1", "c", "draining", busy=1),
                pool_mib=150,
            ),
            ([], [], None),
            id="a small one may not take what the big one before it waits for",
        ),
        pytest.param(
            fleet(
                replace(A, queue=waiting("a", for_s=9), need=Resources(100 * MIB)),
                replace(B, queue=waiting("b", for_s=5), need=Resources(50 * MIB)),
                deployment("c"),
                replica("c1", "c", "draining", busy=1),
                pool_mib=150,
            ),
            (["b"], [], None),
            id="a small one may take what nobody before it needs",
        ),
        pytest.param(
            fleet(replace(A, demand=Demand(NOW_S - 5, NOW_S + 9)), B, replica("b1", "b"), pool_mib=100),
            ([], ["b1"], 9.0),
            id="refused requests count as demand, too",
        ),
        pytest.param(
            fleet(replace(A, restarts=Restarts(1, NOW_S + 4, False, "oops"), num_warm=2, max_replicas=2)),
            ([], [], 4.0),
            id="what failed waits for its backoff",
        ),
        pytest.param(
            fleet(replace(A, restarts=Restarts(1, NOW_S - 4, False, "oops"), num_warm=2, max_replicas=2)),
            (["a"], [], None),
            id="and is then tried by one",
        ),
        pytest.param(
            fleet(
                replace(A, queue=waiting("a"), max_replicas=2),
                B,
                replica("a1", "a", busy=1),
                replica("b1", "b", busy=1),
                pool_mib=200,
            ),
            ([], [], None),
            id="one more replica is no reason to close a busy stranger",
        ),
    ],
)
def test_plan(view: FleetView, expected: tuple[list[str], list[str], float | None]) -> None:
    assert todo(view) == expected


def test_refusal_shows_the_arithmetic() -> None:
    decision = decide(fleet(A, OWN, replica("o1", "own"), pool_mib=150), ask(), NOW_S)
    assert isinstance(decision, Refused)
    assert decision.arithmetic == "a needs 100 MiB; pool 150 MiB − dedicated own 100 MiB = 50 MiB free"
