"""Learned times, waits, backoff, budgets: the small pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.fleet.domain.estimates import ServiceTimes, StartTimes, predict_wait_s, prior_start_s, start_left_s
from stoker.fleet.domain.eviction import AUTO_KEEP_ALIVE_S, idle_exit, may_leave_at_s
from stoker.fleet.domain.placement import Reservation, Resources, format_bytes, place, threads_per_replica
from stoker.fleet.domain.restarts import RestartPolicy, Restarts, after_failure, after_ready, after_success

MIB = 2**20


def test_prior_holds_until_the_first_measured_start() -> None:
    starts = StartTimes(prior_start_s(1000 * MIB))
    assert starts.learned_s == 3.0
    assert starts.observe(0.4).learned_s == 0.4


def test_three_starts_after_a_change_from_3_to_12_seconds_the_estimate_follows() -> None:
    starts = StartTimes(1.0)
    for _ in range(5):
        starts = starts.observe(3.0)
    learned = []
    for _ in range(3):
        starts = starts.observe(12.0)
        learned.append(starts.learned_s)
    assert learned == [3.0, 3.0, 12.0]


@pytest.mark.parametrize(
    ("elapsed_s", "left_s"),
    [(0.0, 4.0), (3.0, 1.0), (4.0, 0.2), (5.0, 1.0), (10.0, 6.0), (55.0, 5.0), (60.0, 0.0), (70.0, 0.0)],
)
def test_start_under_way_has_learned_minus_elapsed_left_and_grows_when_it_overruns(
    elapsed_s: float, left_s: float
) -> None:
    assert start_left_s(4.0, elapsed_s, 60.0) == pytest.approx(left_s)


def test_service_time_learns_and_scales_with_a_requests_size_within_limits() -> None:
    service = ServiceTimes().observe(2.0, 100)
    assert service.predict_s(0) == service.predict_s(100) == 2.0
    assert service.predict_s(200) == 4.0
    assert service.predict_s(1_000_000) == 8.0
    assert service.observe(7.0, None).mean_s == 3.0


@pytest.mark.parametrize(
    ("free_in_s", "ahead_s", "wait_s"),
    [
        pytest.param([], [], None, id="nothing to wait for"),
        pytest.param([0.0], [], 0.0, id="a free slot"),
        pytest.param([3.0], [1.0, 1.0], 5.0, id="behind two on one slot"),
        pytest.param([3.0, 3.0], [1.0, 1.0], 4.0, id="behind two on two slots"),
        pytest.param([1.0, 9.0], [1.0, 1.0], 3.0, id="the early slot serves on before the late one comes"),
    ],
)
def test_wait(free_in_s: list[float], ahead_s: list[float], wait_s: float | None) -> None:
    assert predict_wait_s(free_in_s, ahead_s) == wait_s


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.lists(st.floats(0.01, 10), max_size=12))
def test_law_a_longer_queue_never_waits_less(free_in_s: list[float], ahead_s: list[float]) -> None:
    waits = [predict_wait_s(free_in_s, ahead_s[:length]) or 0.0 for length in range(len(ahead_s) + 1)]
    assert waits == sorted(waits)


def test_idle_exit_counts_from_the_end_of_the_last_request() -> None:
    assert idle_exit(10.0, 5.0, 12.0) == 3.0
    assert idle_exit(10.0, 5.0, 99.0) == 0.0
    assert idle_exit("auto", 5.0, 5.0) == AUTO_KEEP_ALIVE_S


@pytest.mark.parametrize(
    ("idle_since_s", "leave_at_s"),
    [
        pytest.param(None, 110.0, id="busy: at the end of its quantum"),
        pytest.param(101.0, 102.0, id="idle: after half of its own start"),
        pytest.param(109.5, 110.0, id="idle late: at the end of its quantum"),
        pytest.param(150.0, 150.0, id="idle after its quantum: at once"),
    ],
)
def test_who_may_leave_when(idle_since_s: float | None, leave_at_s: float) -> None:
    assert may_leave_at_s(100.0, idle_since_s, 2.0, 10.0) == leave_at_s


def test_backoff_doubles_is_capped_and_the_circuit_opens_after_the_last_failure() -> None:
    policy, restarts = RestartPolicy(9, 300.0), Restarts()
    waits = []
    for _ in range(10):
        restarts = after_failure(restarts, policy, "boom", 0.0)
        waits.append(restarts.blocked_for_s(0.0))
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 300, 300]
    assert restarts.is_refusing(299.0)
    assert not restarts.is_refusing(300.0)
    assert after_ready(restarts).num_failures == 10
    assert not after_ready(restarts).is_refusing(0.0)
    assert after_success(restarts) == Restarts()


def test_reservations_are_placed_in_order_and_say_why_they_do_not_fit() -> None:
    wanted = [
        Reservation("a", "dedicated", Resources(600 * MIB), 2),
        Reservation("b", "min_replicas", Resources(100 * MIB), 0),
        Reservation("c", "dedicated", Resources(900 * MIB), 1),
        Reservation("d", "dedicated", Resources(800 * MIB), 1),
    ]
    placement = place(Resources(2048 * MIB), wanted)
    assert list(placement.placed) == ["a", "d"]
    assert placement.unplaced == {"c": "c needs 900 MiB; pool 2.0 GiB − dedicated a 1.2 GiB = 848 MiB free"}


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (2048, "2 KiB"), (331 * MIB, "331 MiB"), (2**30, "1.0 GiB"), (-MIB, "−1 MiB")]
)
def test_sizes_read_as_people_write_them(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("cores", "live", "declared", "threads"), [(4, 2, None, 2), (2, 5, None, 1), (8, 0, 3, 3)])
def test_threads(cores: int, live: int, declared: int | None, threads: int) -> None:
    assert threads_per_replica(cores, live, declared) == threads
