"""Dedicated deployments, moves between tiers, changed launches, deletion and scaling; on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from stoker.errors import Forbidden, InsufficientMemory, ModelUnavailable, NoCapacity, NotFound, UnknownModel
from stoker.testing.fleet import FleetHarness, dedicated, serverless


async def test_dedicated_replicas_are_warm_from_boot_and_restarted_when_they_die(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(replicas=2)}, warm_up_s=1.1)
    assert harness.statuses("own") == ("ready", "ready")
    victim = harness.replicas("own")[0]
    harness.keeper.exit_engine(victim.engine_id, signal=9, last_words="killed")
    await harness.clock.advance(0.1)
    assert harness.deployment("own").last_error is not None
    assert "signal 9" in str(harness.deployment("own").last_error)
    await harness.clock.advance(2.0)
    assert harness.statuses("own") == ("ready", "ready")
    assert victim.replica_id not in {each.replica_id for each in harness.replicas("own")}


async def test_dedicated_never_idles_out(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(keep_alive=1)}, warm_up_s=100.0)
    assert harness.statuses("own") == ("ready",)


async def test_pool_full_of_reservations_refuses_serverless_with_arithmetic_while_dedicated_flows() -> None:
    harness = FleetHarness(pool_mib=250)
    await harness.start({"own": dedicated(replicas=2, tenants=("acme",)), "late": serverless()}, warm_up_s=1.1)
    asked = harness.ask("late")
    await harness.clock.advance(0.0)
    with pytest.raises(NoCapacity) as refused:
        asked.result()
    assert "late needs 100 MiB; pool 250 MiB − dedicated own 200 MiB = 50 MiB free" in str(refused.value)
    served = await harness.ask("own", tenant="acme")
    assert served.tier == "dedicated"
    foreign = harness.ask("own", tenant="bolt")
    await harness.clock.advance(0.0)
    with pytest.raises(Forbidden):
        foreign.result()


async def test_dedicated_that_does_not_fit_at_boot_says_so_and_leaves_the_others_alone() -> None:
    harness = FleetHarness(pool_mib=250)
    await harness.start({"big": dedicated(replicas=3), "own": dedicated()}, warm_up_s=1.1)
    assert harness.statuses("own") == ("ready",)
    assert harness.deployment("big").status == "failed"
    asked = harness.ask("big")
    await harness.clock.advance(0.0)
    with pytest.raises(NoCapacity, match="big needs 300 MiB; pool 250 MiB"):
        asked.result()


async def test_model_that_is_unavailable_at_boot_fails_its_own_requests_only_and_is_tried_again(
    harness: FleetHarness,
) -> None:
    harness.missing_models.add("lost")
    lost = serverless().model_copy(update={"model": "lost"})
    await harness.start({"a": serverless(), "b": lost})
    asked = harness.ask("b")
    await harness.clock.advance(0.0)
    with pytest.raises(ModelUnavailable, match="cannot be fetched") as error:
        asked.result()
    assert error.value.retry_after_s == pytest.approx(30.0)
    harness.missing_models.clear()
    await harness.fleet.reconcile({"a": serverless(max_queue=3), "b": lost})  # an unrelated change goes through
    await harness.clock.advance(31.0)
    harness.ask("b").add_done_callback(lambda task: task.exception())
    await harness.clock.advance(0.1)
    served = harness.ask("b")
    await harness.clock.advance(1.1)
    assert served.result().deployment == "b"


async def test_move_between_tiers_relabels_warm_replicas_without_a_restart(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    asked = harness.ask("a")
    await harness.clock.advance(1.1)
    held = asked.result()
    assert held.tier == "serverless"
    await harness.fleet.reconcile({"a": dedicated()})
    await harness.clock.advance(5.0)
    (replica,) = harness.replicas("a")
    assert (replica.replica_id, replica.tier, replica.status) == (held.replica_id, "dedicated", "ready")
    assert harness.deployment("a").reserved_bytes == 100 * 2**20
    harness.done(held)
    assert (await harness.ask("a")).tier == "dedicated"
    await harness.fleet.reconcile({"a": serverless(keep_alive=1)})
    assert harness.deployment("a").reserved_bytes == 0
    assert harness.replicas("a")[0].replica_id == held.replica_id
    assert len(harness.engine.launches) == 1


async def test_twenty_moves_under_load_drop_nothing(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(target_ongoing_requests=4)})
    served = []
    for number in range(20):
        tasks = [harness.serve("a", for_s=0.3) for _ in range(3)]
        served += [asyncio.create_task(each) for each in tasks]
        settings = dedicated if number % 2 == 0 else serverless
        await harness.fleet.reconcile({"a": settings(target_ongoing_requests=4)})
        await harness.clock.advance(0.2)
    await harness.clock.advance(10.0)
    assert all(each.done() and each.exception() is None for each in served)
    assert len(harness.engine.launches) == 1


async def test_move_to_dedicated_refuses_waiting_strangers_and_evicts_the_idle_for_more_replicas() -> None:
    harness = FleetHarness(pool_mib=200)
    await harness.start({"a": serverless(), "b": serverless()})
    warm = harness.ask("b")
    await harness.clock.advance(1.1)
    harness.done(warm.result())
    await harness.clock.advance(5.0)
    stranger = harness.ask("a", tenant="bolt")
    await harness.clock.advance(0.1)
    await harness.fleet.reconcile({"a": dedicated(replicas=2, tenants=("acme",)), "b": serverless()})
    await harness.clock.advance(0.0)
    with pytest.raises(Forbidden):
        stranger.result()
    await harness.clock.advance(3.0)
    assert harness.statuses("a") == ("ready", "ready")
    assert harness.statuses("b") == ()


async def test_reservation_that_cannot_fit_is_refused_and_changes_nothing() -> None:
    harness = FleetHarness(pool_mib=250)
    await harness.start({"own": dedicated(replicas=2), "a": serverless(memory_mib=50)}, warm_up_s=1.1)
    before = harness.fleet.snapshot()
    with pytest.raises(InsufficientMemory, match="a needs 100 MiB; pool 250 MiB − dedicated own 200 MiB"):
        await harness.fleet.reconcile({"own": dedicated(replicas=2), "a": dedicated(memory_mib=100)})
    assert harness.fleet.snapshot() == before


async def test_changed_launch_starts_the_new_before_it_drains_the_old(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated()}, warm_up_s=1.1)
    (old,) = harness.replicas("own")
    held = await harness.ask("own")
    await harness.fleet.reconcile({"own": dedicated(engine={"context_tokens": 4096})})
    await harness.clock.advance(0.5)
    assert harness.statuses("own") == ("ready", "starting")
    assert [each.is_current for each in harness.replicas("own")] == [False, True]
    await harness.clock.advance(0.6)
    assert harness.statuses("own") == ("draining", "ready")  # the stream in flight goes on
    assert (await harness.ask("own")).replica_id != old.replica_id
    harness.done(held)
    await harness.clock.advance(0.1)
    assert harness.statuses("own") == ("ready",)


async def test_changed_launch_that_never_starts_keeps_the_old_replica_serving(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated()}, warm_up_s=1.1)
    (old,) = harness.replicas("own")
    harness.engine.start_s["own"] = float("inf")
    await harness.fleet.reconcile({"own": dedicated(engine={"context_tokens": 64, "start_timeout": 5})})
    await harness.clock.advance(100.0)
    assert (await harness.ask("own")).replica_id == old.replica_id
    assert harness.deployment("own").last_error is not None


async def test_changed_launch_without_room_for_both_replaces_one_after_the_other() -> None:
    harness = FleetHarness(pool_mib=150)
    await harness.start({"own": dedicated()}, warm_up_s=1.1)
    await harness.fleet.reconcile({"own": dedicated(engine={"context_tokens": 4096})})
    used = []
    for _ in range(30):
        await harness.clock.advance(0.1)
        used.append(harness.used_mib)
    assert max(used) == 100
    assert [each.is_current for each in harness.replicas("own")] == [True]


async def test_policy_change_never_restarts_and_takes_effect_at_once(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(keep_alive=1000)})
    asked = harness.ask("a")
    await harness.clock.advance(1.1)
    harness.done(asked.result())
    await harness.fleet.reconcile({"a": serverless(keep_alive=5, target_ongoing_requests=3)})
    assert harness.replicas("a")[0].slots == 3
    assert len([harness.ask("a") for _ in range(3)]) == 3
    await harness.clock.advance(0.0)
    assert harness.deployment("a").ongoing == 3
    assert len(harness.engine.launches) == 1


async def test_shorter_keep_alive_takes_effect_on_who_is_already_idle(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(keep_alive=1000)})
    asked = harness.ask("a")
    await harness.clock.advance(1.1)
    harness.done(asked.result())
    await harness.fleet.reconcile({"a": serverless(keep_alive=5)})
    await harness.clock.advance(5.2)
    assert harness.statuses("a") == ()


async def test_deleted_deployment_ends_its_streams_in_peace_and_is_unknown_at_once(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(), "b": serverless()})
    asked = [harness.ask("a"), harness.ask("a")]
    await harness.clock.advance(1.1)
    await harness.fleet.reconcile({"b": serverless()})
    await harness.clock.advance(0.1)
    with pytest.raises(UnknownModel, match="deleted"):
        asked[1].result()
    assert harness.fleet.find("a") is None
    assert [each.name for each in harness.fleet.all()] == ["b"]
    assert harness.statuses("a") == ("draining",)
    harness.done(asked[0].result())
    await harness.clock.advance(0.1)
    assert harness.fleet.snapshot().deployment("a") is None
    assert [(each.deployment, each.revision) for each in harness.changes][-1] == ("a", None)


async def test_deleted_and_created_again_while_its_old_replica_still_drains(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    asked = harness.ask("a")
    await harness.clock.advance(1.1)
    held = asked.result()
    await harness.fleet.reconcile({})
    await harness.fleet.reconcile({"a": serverless()})
    again = harness.ask("a")
    await harness.clock.advance(1.1)
    assert again.result().replica_id != held.replica_id
    harness.done(held)
    await harness.clock.advance(0.1)
    assert harness.statuses("a") == ("ready",)


async def test_scale_raises_the_warm_floor_and_returns_the_settings_that_say_so(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    scaled = await harness.fleet.scale("a", 2)
    assert (scaled.min_replicas, scaled.max_replicas) == (2, 2)
    await harness.clock.advance(1.1)
    assert harness.statuses("a") == ("ready", "ready")
    await harness.fleet.scale("a", 0)
    await harness.clock.advance(301.0)
    assert harness.statuses("a") == ()
    with pytest.raises(NotFound):
        await harness.fleet.scale("b", 1)


async def test_scale_in_with_streams_in_flight_cuts_none_dynamo_13559(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(replicas=2)}, warm_up_s=1.1)
    held = [await harness.ask("own") for _ in range(2)]
    assert len({each.replica_id for each in held}) == 2
    await harness.fleet.scale("own", 1)
    await harness.clock.advance(30.0)
    assert sorted(harness.statuses("own")) == ["draining", "ready"]
    assert len(harness.keeper.running) == 2
    for each in held:
        harness.done(each)
    await harness.clock.advance(0.1)
    assert harness.statuses("own") == ("ready",)


async def test_drain_time_out_bounds_a_stream_that_never_ends(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(replicas=2, drain_timeout=20)}, warm_up_s=1.1)
    for _ in range(2):
        await harness.ask("own")
    await harness.fleet.reconcile({"own": dedicated(replicas=1, drain_timeout=20)})
    await harness.clock.advance(20.1)
    assert harness.statuses("own") == ("ready",)
    reasons = [each.reason for each in harness.moves if each.to_status == "stopping"]
    assert reasons == ["the drain timed out and cut 1 requests"]


async def test_gpus_are_handed_out_exclusively() -> None:
    harness = FleetHarness(gpus=1)
    await harness.start({"own": dedicated(gpus=1), "b": serverless(gpus=1)}, warm_up_s=1.1)
    asked = harness.ask("b")
    await harness.clock.advance(0.0)
    with pytest.raises(NoCapacity, match="needs 1 GPUs of 1 − dedicated own 1 = 0 free"):
        asked.result()


async def test_threads_are_split_by_live_replicas() -> None:
    harness = FleetHarness(cores=4)
    await harness.start({"own": dedicated(replicas=2), "b": serverless(engine={"threads": 3})}, warm_up_s=1.1)
    harness.ask("b")
    await harness.clock.advance(1.1)
    assert [each.threads for each in harness.engine.launches] == [2, 2, 3]
