"""Hand-over, adoption, a lost keeper, draining the server, and what the ledger keeps of it; on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from stoker.errors import Draining, EngineFailed, KeeperUnavailable
from stoker.fleet.domain import lifecycle as life
from stoker.fleet.ports import Endpoint
from stoker.ledger.domain.intervals import intervals_from_events
from stoker.testing.fleet import FleetHarness, dedicated, serverless
from stoker.testing.keeper import FakeKeeper


async def test_ready_engines_of_a_killed_server_are_adopted_without_a_reload(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(), "a": serverless()}, warm_up_s=1.1)
    served = harness.ask("a")
    await harness.clock.advance(1.1)
    harness.done(served.result())
    await harness.clock.advance(0.0)
    pids = {each.pid for name in ("own", "a") for each in harness.replicas(name)}
    # kill -9: the old fleet is simply heard of no more
    harness.fleet = harness.new_fleet()
    await harness.start({"own": dedicated(), "a": serverless()})
    assert harness.statuses("own") == harness.statuses("a") == ("ready",)
    assert {each.pid for name in ("own", "a") for each in harness.replicas(name)} == pids
    assert len(harness.engine.launches) == 2
    lease = await harness.ask("a")
    assert not lease.use.may_reuse_prefix  # nobody knows whose content its slots hold


async def test_adopted_replica_writes_a_stream_of_its_own_and_dies_like_any_other(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated()}, warm_up_s=1.1)
    (before,) = harness.replicas("own")
    harness.fleet = harness.new_fleet()
    await harness.start({"own": dedicated()})
    (after,) = harness.replicas("own")
    assert after.engine_id == before.engine_id
    assert after.replica_id != before.replica_id
    assert harness.path_of(after.replica_id) == ("cold", "ready")
    harness.keeper.exit_engine(after.engine_id, signal=9)
    await harness.clock.advance(0.0)
    assert harness.path_of(after.replica_id) == ("cold", "ready", "failed")


@pytest.mark.parametrize("fault", ["another launch", "deleted", "not ready yet", "unhealthy", "more than wanted"])
async def test_engine_that_does_not_fit_is_killed_at_start(harness: FleetHarness, fault: str) -> None:
    await harness.start({"own": dedicated(replicas=2)}, warm_up_s=0.5 if fault == "not ready yet" else 1.1)
    left = {each.engine_id for each in harness.replicas("own")}
    await harness.clock.advance(0.0)
    wanted = {"own": dedicated(replicas=2)}
    if fault == "another launch":
        wanted = {"own": dedicated(replicas=2, engine={"context_tokens": 64})}
    elif fault == "deleted":
        wanted = {}
    elif fault == "unhealthy":
        harness.engine.unhealthy |= left
    elif fault == "more than wanted":
        wanted = {"own": dedicated(replicas=1)}
    harness.fleet = harness.new_fleet()
    await harness.start(wanted)
    killed = {each.replica_id for each in harness.keeper.calls if each.verb == "kill"}
    assert killed == left if fault != "more than wanted" else len(killed) == 1


async def test_detach_leaves_ready_engines_to_the_keeper_and_ends_the_others(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated()}, warm_up_s=1.1)
    harness.engine.start_s["own"] = 50.0
    await harness.fleet.scale("own", 2)
    await harness.clock.advance(0.1)
    assert sorted(harness.statuses("own")) == ["ready", "starting"]
    (ready,) = [each for each in harness.replicas("own") if each.status == "ready"]
    leaving = asyncio.create_task(harness.fleet.detach())
    await harness.clock.advance(1.0)
    await leaving
    assert harness.keeper.running == {ready.engine_id}
    assert [each.is_ready for each in await harness.keeper.held()] == [True]
    assert harness.path_of(ready.replica_id)[-1] == "stopped"
    await harness.ledger.flush()
    assert await harness.ledger.replica_intervals(only_open=True) == []
    harness.fleet = harness.new_fleet()
    await harness.start({"own": dedicated()})
    assert harness.replicas("own")[0].engine_id == ready.engine_id


async def test_lost_keeper_fails_every_replica_and_whoever_waits_and_a_new_one_goes_on(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(), "a": serverless()}, warm_up_s=1.1)
    held = await harness.ask("own")
    waiting = harness.ask("a")
    await harness.clock.advance(0.1)
    harness.keeper.lose("killed by signal 9")
    await harness.clock.advance(0.1)
    with pytest.raises(EngineFailed, match="keeper was lost: killed by signal 9"):
        waiting.result()
    assert harness.path_of(held.replica_id)[-1] == "failed"
    assert harness.fleet.snapshot().keeper_problem == "the keeper was lost: killed by signal 9"
    late = harness.ask("own")
    await harness.clock.advance(0.0)
    with pytest.raises(KeeperUnavailable):
        late.result()
    num_launches = len(harness.engine.launches)
    await harness.clock.advance(60.0)
    assert len(harness.engine.launches) == num_launches  # nothing is ordered from a keeper that is not there
    harness.done(held)
    harness.keeper = FakeKeeper()
    await harness.fleet.reconnect(harness.keeper)
    await harness.clock.advance(3.0)
    assert harness.statuses("own") == ("ready",)


async def test_server_drain_refuses_what_waits_and_keeps_what_runs(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    asked = [harness.ask("a"), harness.ask("a")]
    await harness.clock.advance(1.1)
    draining = asyncio.create_task(harness.fleet.drain(60.0))
    await harness.clock.advance(10.0)
    with pytest.raises(Draining):
        asked[1].result()
    late = harness.ask("a")
    await harness.clock.advance(0.0)
    with pytest.raises(Draining):
        late.result()
    assert not draining.done()
    harness.done(asked[0].result())
    await harness.clock.advance(0.0)
    assert draining.result() is True


async def test_server_drain_is_bounded_and_stop_leaves_nothing_behind(harness: FleetHarness) -> None:
    harness.keeper.exits_on_terminate = False
    await harness.start({"own": dedicated(replicas=2, engine={"grace": 3})}, warm_up_s=1.1)
    await harness.ask("own")
    draining = asyncio.create_task(harness.fleet.drain(5.0))
    await harness.clock.advance(5.1)
    assert draining.result() is False
    stopping = asyncio.create_task(harness.fleet.stop())
    await harness.clock.advance(3.1)
    assert stopping.done()
    assert harness.keeper.running == frozenset()
    await harness.fleet.stop()
    await harness.ledger.flush()
    assert await harness.ledger.replica_intervals(only_open=True) == []


async def test_stop_in_the_middle_of_a_start_ends_the_process(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated()})
    await harness.clock.advance(0.5)
    stopping = asyncio.create_task(harness.fleet.stop())
    await harness.clock.advance(0.1)
    assert stopping.done()
    assert harness.keeper.running == frozenset()


async def test_ready_engines_are_marked_for_the_keeper_and_unmarked_before_they_drain(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(keep_alive=5)})
    asked = harness.ask("a")
    await harness.clock.advance(1.1)
    harness.done(asked.result())
    await harness.clock.advance(6.0)
    marks = [each.is_ready for each in harness.keeper.calls if each.verb == "mark_ready"]
    assert marks == [True, False]
    assert harness.verbs("a") == ["launch", "mark_ready", "mark_ready", "terminate"]


async def test_external_server_has_no_process_and_is_never_the_keepers(harness: FleetHarness) -> None:
    await harness.start({"ext": serverless(memory_mib=0, engine={"url": "http://127.0.0.1:9"}, keep_alive=5)})
    asked = harness.ask("ext")
    await harness.clock.advance(1.1)
    lease = asked.result()
    assert isinstance(lease.endpoint, Endpoint)
    harness.done(lease)
    await harness.clock.advance(6.0)
    assert harness.path_of(lease.replica_id) == ("cold", "starting", "ready", "draining", "stopping", "stopped")
    assert harness.verbs("ext") == []


async def test_event_log_replayed_through_the_table_equals_the_ledgers_intervals(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(replicas=2), "a": serverless(keep_alive=2), "b": serverless()})
    for number in range(12):
        tasks = [asyncio.create_task(harness.serve(name, for_s=0.2)) for name in ("own", "a", "b")]
        await harness.clock.advance(1.5)
        if number % 4 == 1:
            victim = next(each for each in harness.replicas("own") if each.status == "ready")
            harness.keeper.exit_engine(victim.engine_id, exit_code=1, last_words="out of memory")
        if number % 4 == 3:
            tier = dedicated() if number % 8 == 3 else serverless()
            await harness.fleet.reconcile({"own": dedicated(replicas=2), "a": serverless(keep_alive=2), "b": tier})
        await harness.clock.advance(3.0)
        await asyncio.gather(*tasks, return_exceptions=True)
    stopping = asyncio.create_task(harness.fleet.stop())
    await harness.clock.advance(1.0)
    await stopping
    await harness.ledger.flush()
    events = await harness.ledger.replica_events()
    replayed = intervals_from_events(
        events,
        initial=lambda _: life.ReplicaState(),
        step=lambda state, text: life.step(state, life.event_from_json(text))[0],
        status_of=lambda state: state.status,
        is_final=lambda state: state.is_final,
    )
    assert list(replayed) == list(await harness.ledger.replica_intervals())
    assert len({each.replica_id for each in events}) >= 6
    for replica_id in {each.replica_id for each in events}:
        own = [each for each in events if each.replica_id == replica_id]
        assert [each.sequence for each in own] == list(range(1, len(own) + 1))


async def test_full_ledger_never_stops_an_engine(harness: FleetHarness) -> None:
    harness.ledger.is_failing = True
    await harness.start({"own": dedicated()}, warm_up_s=1.1)
    assert harness.statuses("own") == ("ready",)
