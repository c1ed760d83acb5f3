"""Serverless deployments: wake, hold, refuse, idle, evict; on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from stoker.errors import DeadlineExceeded, EngineFailed, InsufficientMemory, NoCapacity, UnknownModel
from stoker.testing.fleet import FleetHarness, dedicated, serverless


async def test_first_request_wakes_a_replica_and_is_served_by_it(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    asked = harness.ask("a")
    await harness.clock.advance(0.5)
    assert not asked.done()
    assert harness.statuses("a") == ("starting",)
    await harness.clock.advance(0.6)
    lease = asked.result()
    assert lease.queue_s == pytest.approx(1.0, abs=0.05)
    assert lease.cold_start_s == lease.queue_s
    assert harness.path_of(lease.replica_id) == ("cold", "starting", "ready")


async def test_many_cold_requests_start_one_replica_single_flight(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(max_replicas=1)})
    asked = [harness.ask("a") for _ in range(5)]
    await harness.clock.advance(1.1)
    assert len(harness.engine.launches) == 1
    assert [each.done() for each in asked] == [True, False, False, False, False]
    for each in asked:
        harness.done(await each)
    assert len(harness.engine.launches) == 1


async def test_queue_beyond_the_starting_capacity_starts_more_up_to_max_replicas(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(max_replicas=3, target_ongoing_requests=2)})
    asked = [harness.ask("a") for _ in range(9)]
    await harness.clock.advance(1.1)
    assert len(harness.engine.launches) == 3
    assert sum(each.done() for each in asked) == 6
    for each in asked:
        each.cancel()


async def test_no_slot_is_granted_twice(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(target_ongoing_requests=3, max_replicas=2)})
    asked = [harness.ask("a") for _ in range(10)]
    await harness.clock.advance(1.1)
    places = [(each.result().replica_id, each.result().use.slot_index) for each in asked if each.done()]
    assert len(places) == 6
    assert {replica for replica, _ in places} == {each.replica_id for each in harness.replicas("a")}
    for each in asked:
        each.cancel()


async def test_idle_clock_starts_at_the_end_of_the_request_llama_swap_25(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(keep_alive=10)})
    lease = await asyncio.wait_for(_advance_until(harness, harness.ask("a"), 2.0), None)
    await harness.clock.advance(60.0)
    assert harness.statuses("a") == ("ready",)
    harness.done(lease)
    await harness.clock.advance(9.9)
    assert harness.statuses("a") == ("ready",)
    await harness.clock.advance(0.2)
    assert harness.statuses("a") == ()
    assert harness.path_of(lease.replica_id)[-3:] == ("draining", "stopping", "stopped")


async def test_client_leaves_during_load_and_the_load_goes_on_ollama_7408(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(keep_alive=10)})
    asked = harness.ask("a")
    await harness.clock.advance(0.5)
    asked.cancel()
    await harness.clock.advance(0.6)
    assert harness.statuses("a") == ("ready",)
    assert harness.deployment("a").queued == 0
    served = await harness.ask("a")
    assert served.cold_start_s == 0.0
    harness.done(served)
    await harness.clock.advance(10.1)
    assert harness.statuses("a") == ()


async def test_caller_that_leaves_in_the_very_turn_of_its_grant_leaks_no_slot(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    first = harness.ask("a")
    second = harness.ask("a")
    await harness.clock.advance(1.1)
    harness.done(first.result())  # the second one's future is set here, its task has not run yet
    second.cancel()
    await harness.clock.advance(0.0)
    assert second.cancelled()
    assert harness.deployment("a").ongoing == 0
    harness.done(await harness.ask("a"))


async def test_release_twice_is_a_no_op(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(target_ongoing_requests=2)}, warm_up_s=0)
    asked = [harness.ask("a"), harness.ask("a")]
    await harness.clock.advance(1.1)
    harness.done(asked[0].result())
    harness.done(asked[0].result())
    assert harness.deployment("a").ongoing == 1


async def test_three_cold_deployments_with_room_for_one_all_finish_llama_cpp_28443() -> None:
    harness = FleetHarness(pool_mib=100)
    await harness.start({name: serverless() for name in "abc"})
    served = [asyncio.create_task(harness.serve(name)) for name in "abc"]
    used = []
    for _ in range(100):
        await harness.clock.advance(0.1)
        used.append(harness.used_mib)
    assert [each.done() for each in served] == [True, True, True]
    assert max(used) == 100


async def test_three_continuously_fed_deployments_with_room_for_one_take_turns() -> None:
    harness = FleetHarness(pool_mib=100)
    await harness.start({name: serverless(max_wait=120) for name in "abc"})
    counts = dict.fromkeys("abc", 0)

    async def feed(name: str) -> None:
        while True:
            await harness.serve(name, for_s=0.5)
            counts[name] += 1

    feeders = [asyncio.create_task(feed(name)) for name in "abc" for _ in range(3)]
    await harness.clock.advance(120.0)
    assert all(count >= 30 for count in counts.values()), counts
    # Turns last a quantum: a swap for every request would be many more (Ollama #10948).
    assert len(harness.engine.launches) <= 15
    for each in feeders:
        each.cancel()
    await asyncio.gather(*feeders, return_exceptions=True)


async def test_two_alternating_clients_with_think_time_do_not_thrash_ollama_10948() -> None:
    harness = FleetHarness(pool_mib=100)
    await harness.start({name: serverless() for name in "ab"})

    async def converse(name: str) -> None:
        for _ in range(20):
            await harness.serve(name, for_s=0.2)
            await harness.clock.sleep(0.05)

    talks = [asyncio.create_task(converse(name)) for name in "ab"]
    await harness.clock.advance(60.0)
    assert all(each.done() for each in talks)
    assert len(harness.engine.launches) <= 4


async def test_swap_never_cuts_a_running_request_llama_swap_19_588() -> None:
    harness = FleetHarness(pool_mib=100)
    await harness.start({name: serverless() for name in "ab"})
    held = await _advance_until(harness, harness.ask("a"), 2.0)
    other = harness.ask("b")
    await harness.clock.advance(30.0)
    assert not other.done()
    assert harness.statuses("a") == ("draining",)  # after its quantum it takes nothing more, and ends in peace
    assert harness.keeper.running == {held.replica_id}
    harness.done(held)
    await harness.clock.advance(2.0)
    assert other.result().deployment == "b"


async def test_queued_request_never_evicts_the_model_that_serves_its_trigger_llama_cpp_28698() -> None:
    harness = FleetHarness(pool_mib=150)
    await harness.start({"a": serverless(max_replicas=2)})
    held = await _advance_until(harness, harness.ask("a"), 2.0)
    queued = harness.ask("a")
    await harness.clock.advance(30.0)
    assert harness.statuses("a") == ("ready",)
    assert harness.keeper.running == {held.replica_id}
    harness.done(held)
    assert (await queued).replica_id == held.replica_id


async def test_memory_goes_first_from_whoever_has_been_idle_longest() -> None:
    harness = FleetHarness(pool_mib=200)
    await harness.start({name: serverless() for name in "abc"})
    for name in "ab":
        lease = await _advance_until(harness, harness.ask(name), 2.0)
        harness.done(lease)
        await harness.clock.advance(5.0)
    await _advance_until(harness, harness.ask("c"), 3.0)
    assert harness.statuses("a") == ()
    assert harness.statuses("b") == ("ready",)


async def test_dedicated_and_min_replicas_are_never_evicted() -> None:
    harness = FleetHarness(pool_mib=250)
    await harness.start(
        {"own": dedicated(), "warm": serverless(min_replicas=1), "late": serverless(memory_mib=100)}, warm_up_s=1.1
    )
    asked = harness.ask("late")
    await harness.clock.advance(0.1)
    with pytest.raises(NoCapacity, match=r"late needs 100 MiB; pool 250 MiB − dedicated own 100 MiB − min_replicas"):
        asked.result()
    assert harness.statuses("own") == harness.statuses("warm") == ("ready",)


async def test_predicted_wait_beyond_the_deadline_is_refused_with_a_truthful_retry_after(harness: FleetHarness) -> None:
    harness.engine.start_s["a"] = 12.0
    await harness.start({"a": serverless(max_wait=60)})
    warm = await _advance_until(harness, harness.ask("a"), 13.0)
    harness.done(warm)
    await harness.clock.advance(400.0)
    asked = harness.ask("a", within_s=5.0)
    await harness.clock.advance(0.0)
    with pytest.raises(NoCapacity) as refused:
        asked.result()
    assert refused.value.retry_after_s == pytest.approx(12.0, rel=0.05)
    assert harness.statuses("a") == ("starting",)  # woken all the same
    assert refused.value.retry_after_s is not None
    await harness.clock.advance(refused.value.retry_after_s + 0.01)
    assert (await harness.ask("a")).queue_s == 0.0


async def test_three_starts_after_a_change_from_3_to_12_seconds_hold_or_refuse_follows(harness: FleetHarness) -> None:
    harness.engine.start_s["a"] = 3.0
    await harness.start({"a": serverless(max_wait=60, keep_alive=1)})

    async def start_once(*, within_s: float) -> bool:
        """Return whether the request was held (and then served or not) instead of being refused at once."""
        asked = harness.ask("a", within_s=within_s)
        await harness.clock.advance(0.0)
        was_held = not asked.done()
        await harness.clock.advance(20.0)
        if asked.exception() is None:
            harness.done(asked.result())
        await harness.clock.advance(2.0)
        assert harness.statuses("a") == ()
        return was_held

    assert [await start_once(within_s=6.0) for _ in range(5)] == [True] * 5
    harness.engine.start_s["a"] = 12.0
    assert [await start_once(within_s=6.0) for _ in range(3)] == [True] * 3
    assert await start_once(within_s=6.0) is False
    assert await start_once(within_s=14.0) is True
    harness.engine.start_s["a"] = 3.0
    for _ in range(3):
        await start_once(within_s=14.0)
    assert await start_once(within_s=6.0) is True


async def test_held_request_whose_deadline_passes_is_told_so(harness: FleetHarness) -> None:
    harness.engine.start_s["a"] = 30.0
    await harness.start({"a": serverless()})
    asked = harness.ask("a", within_s=5.0)
    await harness.clock.advance(4.9)
    assert not asked.done()
    await harness.clock.advance(0.2)
    with pytest.raises(DeadlineExceeded):
        asked.result()
    assert harness.statuses("a") == ("starting",)


async def test_full_queue_is_refused_until_a_place_is_predicted_free(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(max_queue=2)})
    asked = [harness.ask("a") for _ in range(3)]
    await harness.clock.advance(0.0)
    with pytest.raises(NoCapacity, match="max_queue 2"):
        asked[2].result()
    assert not asked[0].done()
    for each in asked:
        each.cancel()


async def test_no_queue_at_all_still_wakes_the_replica_for_the_retry(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(max_queue=0)})
    asked = harness.ask("a")
    await harness.clock.advance(0.0)
    with pytest.raises(NoCapacity) as refused:
        asked.result()
    assert refused.value.retry_after_s is not None
    await harness.clock.advance(refused.value.retry_after_s + 0.01)
    assert (await harness.ask("a")).queue_s == 0.0


async def test_model_that_can_never_fit_is_refused_with_the_arithmetic_before_anything_starts(
    harness: FleetHarness,
) -> None:
    await harness.start({"a": serverless(memory_mib=2000)})
    asked = harness.ask("a")
    await harness.clock.advance(0.0)
    with pytest.raises(InsufficientMemory, match=r"a needs 2.0 GiB; pool 1000 MiB"):
        asked.result()
    assert harness.engine.launches == []


async def test_failed_scale_up_releases_its_callers_with_the_engines_words_knative_13211(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    asked = [harness.ask("a") for _ in range(3)]
    await harness.clock.advance(0.3)
    (replica,) = harness.replicas("a")
    harness.keeper.exit_engine(replica.engine_id, exit_code=1, last_words="error: corrupt tensor blk.0")
    await harness.clock.advance(0.0)
    for each in asked:
        with pytest.raises(EngineFailed, match="corrupt tensor"):
            each.result()
    assert harness.deployment("a").queued == 0
    assert harness.used_mib == 0


async def test_start_that_never_becomes_ready_fails_its_callers_and_gives_its_memory_back(
    harness: FleetHarness,
) -> None:
    harness.engine.start_s["a"] = float("inf")
    harness.keeper.exits_on_terminate = False
    await harness.start({"a": serverless(max_wait=60, engine={"start_timeout": 7, "grace": 2})})
    asked = harness.ask("a")
    await harness.clock.advance(7.1)
    with pytest.raises(EngineFailed, match="not ready within 7 s"):
        asked.result()
    assert harness.statuses("a") == ("stopping",)
    assert harness.used_mib == 100
    await harness.clock.advance(2.1)
    assert harness.used_mib == 0
    assert [verb for verb in harness.verbs("a") if verb in ("launch", "terminate", "kill")] == [
        "launch",
        "terminate",
        "kill",
    ]


async def test_circuit_opens_after_max_start_failures_and_lets_one_start_through_after_its_cool_down(
    harness: FleetHarness,
) -> None:
    await harness.start({"a": serverless(max_start_failures=2, circuit_cooldown=30)})
    for _ in range(2):
        harness.keeper.refuse_launch("exec format error")
        asked = harness.ask("a")
        await harness.clock.advance(0.6)
        with pytest.raises(EngineFailed, match="exec format error"):
            asked.result()
        await harness.clock.advance(1.0)
    num_launches = len(harness.engine.launches)
    refused = harness.ask("a")
    await harness.clock.advance(0.0)
    with pytest.raises(EngineFailed, match="2 starts in a row failed.*exec format error") as error:
        refused.result()
    assert error.value.retry_after_s is not None
    assert 27 < error.value.retry_after_s < 31
    assert len(harness.engine.launches) == num_launches
    assert harness.deployment("a").status == "failed"
    await harness.clock.advance(30.0)
    served = harness.ask("a")
    await harness.clock.advance(1.1)
    harness.done(served.result())
    assert harness.deployment("a").consecutive_failures == 0


async def test_crash_looping_replica_is_no_capacity_and_holds_no_memory_runpod_29(harness: FleetHarness) -> None:
    await harness.start({"own": dedicated(max_start_failures=3, circuit_cooldown=1000)}, warm_up_s=1.1)
    held_s = 0.0
    for _ in range(2000):
        for replica in harness.replicas("own"):
            if replica.status == "ready":
                harness.keeper.exit_engine(replica.engine_id, exit_code=139, last_words="segfault")
        held_s += 0.1 if harness.used_mib else 0.0
        await harness.clock.advance(0.1)
        if harness.deployment("own").circuit_retry_in_s:
            break
    assert harness.deployment("own").consecutive_failures == 3
    assert harness.used_mib == 0
    await harness.clock.advance(500.0)
    assert harness.used_mib == 0
    assert len(harness.engine.launches) == 3
    await harness.ledger.flush()
    assert await harness.ledger.replica_intervals(only_open=True) == []


async def test_suspect_replica_is_asked_at_once_and_taken_back_when_healthy(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    lease = await _advance_until(harness, harness.ask("a"), 2.0)
    harness.done(lease, is_replica_suspect=True)
    await harness.clock.advance(0.01)
    again = await harness.ask("a")
    assert again.replica_id == lease.replica_id


async def test_suspect_replica_without_health_fails_and_is_replaced(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    lease = await _advance_until(harness, harness.ask("a"), 2.0)
    harness.engine.unhealthy.add(lease.replica_id)
    harness.done(lease, is_replica_suspect=True)
    await harness.clock.advance(1.0)
    assert harness.path_of(lease.replica_id)[-3:] == ("ready", "stopping", "failed")
    retried = await _advance_until(harness, harness.ask("a", excluded=frozenset({lease.replica_id})), 3.0)
    assert retried.replica_id != lease.replica_id


async def test_request_that_failed_everywhere_is_not_held(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    lease = await _advance_until(harness, harness.ask("a"), 2.0)
    harness.done(lease)
    retried = harness.ask("a", excluded=frozenset({lease.replica_id}))
    await harness.clock.advance(0.0)
    with pytest.raises(EngineFailed, match="every replica"):
        retried.result()


async def test_unknown_model(harness: FleetHarness) -> None:
    await harness.start({"a": serverless()})
    asked = harness.ask("b")
    await harness.clock.advance(0.0)
    with pytest.raises(UnknownModel):
        asked.result()


async def test_slots_tell_whether_another_tenants_content_may_still_lie_there(harness: FleetHarness) -> None:
    await harness.start({"a": serverless(engine={"slots": 2})})
    first = await _advance_until(harness, harness.ask("a", tenant="acme"), 2.0)
    second = await harness.ask("a", tenant="bolt")
    assert first.use.may_reuse_prefix  # an empty slot holds nobody's content
    assert first.use.tenant_salt != second.use.tenant_salt
    harness.done(first)
    harness.done(second)
    own = await harness.ask("a", tenant="bolt")
    assert (own.use.slot_index, own.use.may_reuse_prefix) == (second.use.slot_index, True)
    stranger = await harness.ask("a", tenant="cube")
    assert (stranger.use.slot_index, stranger.use.may_reuse_prefix) == (first.use.slot_index, False)
    assert own.use.tenant_salt == second.use.tenant_salt


async def _advance_until(harness: FleetHarness, asked, by_s: float):  # type: ignore[no-untyped-def]
    await harness.clock.advance(by_s)
    return asked.result()
