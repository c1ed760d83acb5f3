"""Whatever happens in whatever order: every caller gets an answer, nothing leaks, memory holds; on virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.errors import StokerError
from stoker.testing.fleet import FleetHarness, dedicated, serverless

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask", "leave", "end", "end", "suspect", "kill", "refuse_launch", "move", "delete", "pass"]
        ),
        st.integers(0, 10),
        st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    ),
    max_size=40,
)
NAMES = "abc"


async def run_script(script: list[tuple[str, int, float]]) -> None:
    harness = FleetHarness(pool_mib=300)
    harness.engine.start_s = {"a": 0.5, "b": 2.0, "c": 4.0}
    declared = {
        "a": serverless(max_replicas=2, target_ongoing_requests=2, keep_alive=3, max_wait=20),
        "b": serverless(max_wait=20, max_start_failures=2, circuit_cooldown=5, keep_alive=3),
        "c": dedicated(max_wait=20, drain_timeout=10),
    }
    await harness.start(declared)
    asked: list[asyncio.Task] = []
    ended: set[int] = set()
    for what, number, for_s in script:
        granted = [each for each in asked if each.done() and not each.cancelled() and each.exception() is None]
        held = [each.result() for each in granted if each.result().lease_id not in ended]
        match what:
            case "ask":
                asked.append(harness.ask(NAMES[number % 3], tenant=f"t{number % 2}", within_s=5.0 + number))
            case "leave" if asked:
                asked[number % len(asked)].cancel()
            case "end" | "suspect" if held:
                lease = held[number % len(held)]
                ended.add(lease.lease_id)
                harness.done(lease, is_replica_suspect=what == "suspect")
            case "kill" if harness.keeper.running:
                running = sorted(harness.keeper.running)
                harness.keeper.exit_engine(running[number % len(running)], signal=9, last_words="killed")
            case "refuse_launch":
                harness.keeper.refuse_launch("no such file")
            case "move" | "delete":
                name = NAMES[number % 2]
                changed = dict(declared)
                if what == "move":
                    changed[name] = dedicated(max_wait=20, drain_timeout=10, replicas=1)
                else:
                    del changed[name]
                try:
                    await harness.fleet.reconcile(changed)
                    declared = changed if what == "move" else declared
                except StokerError:
                    pass
                if what == "delete":
                    await harness.fleet.reconcile(declared)
            case _:
                pass
        await harness.clock.advance(for_s)
        assert harness.used_mib <= 300
        places = [
            (each.result().replica_id, each.result().use)
            for each in asked
            if each.done() and not each.cancelled() and each.exception() is None
            and each.result().lease_id not in ended and each.result().deployment == "c"
        ]  # fmt: skip
        assert len(places) == len({replica for replica, _ in places})
    await _wind_down(harness, asked, ended)


async def _wind_down(harness: FleetHarness, asked: list[asyncio.Task], ended: set[int]) -> None:
    for _ in range(60):
        for each in asked:
            if each.done() and not each.cancelled() and each.exception() is None:
                lease = each.result()
                if lease.lease_id not in ended:
                    ended.add(lease.lease_id)
                    harness.done(lease)
        await harness.clock.advance(1.0)
    assert all(each.done() for each in asked)
    assert all(each.cancelled() or isinstance(each.exception(), StokerError | None) for each in asked)
    snapshot = harness.fleet.snapshot()
    assert sum(each.ongoing + each.queued for each in snapshot.deployments) == 0
    live = {each.engine_id for deployment in snapshot.deployments for each in deployment.replicas}
    assert harness.keeper.running <= live
    stopping = asyncio.create_task(harness.fleet.stop())
    await harness.clock.advance(30.0)
    assert stopping.done()
    assert harness.keeper.running == frozenset()
    await harness.ledger.flush()
    assert await harness.ledger.replica_intervals(only_open=True) == []


@settings(max_examples=40, deadline=None)
@given(steps)
def test_law_every_caller_is_answered_and_nothing_leaks(script: list[tuple[str, int, float]]) -> None:
    asyncio.run(run_script(script))


@pytest.mark.parametrize("status", ["starting", "ready", "draining", "stopping"])
async def test_engine_killed_in_any_status_leaves_nothing_stuck(harness: FleetHarness, status: str) -> None:
    harness.keeper.exits_on_terminate = False
    await harness.start({"a": serverless(keep_alive=1, engine={"grace": 60})})
    asked = harness.ask("a")
    await harness.clock.advance(0.5 if status == "starting" else 1.1)
    if status == "draining":
        await harness.fleet.reconcile({})
    elif status == "stopping":
        harness.done(asked.result())
        await harness.clock.advance(1.5)
    (replica,) = harness.replicas("a")
    assert replica.status == status
    harness.keeper.exit_engine(replica.engine_id, signal=9, last_words="killed")
    await harness.clock.advance(0.1)
    assert asked.done()
    assert harness.fleet.snapshot().node.used_bytes == 0
    assert harness.path_of(replica.replica_id)[-1] == ("stopped" if status == "stopping" else "failed")


def test_random_long_scripts_too() -> None:
    chooser = random.Random(7)
    verbs = ["ask", "ask", "end", "kill", "suspect", "leave", "move", "delete", "refuse_launch"]
    script = [(chooser.choice(verbs), chooser.randrange(11), chooser.choice([0.0, 0.3, 2.0])) for _ in range(300)]
    asyncio.run(run_script(script))
