"""Reports: what rows add up to."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.ledger.domain.reports import (
    DIMENSIONS,
    Recorded,
    Spread,
    UsageQuery,
    busy_us_by_deployment,
    capacity_rows,
    request_rows,
    spread,
    usage_report,
)
from stoker.ledger.records import ReplicaInterval
from stoker.testing.ledger_rows import NOON_US, a_settlement, an_attempt, an_intent

S = 1_000_000
WINDOW = UsageQuery(NOON_US, NOON_US + 100 * S)


def interval(status: str, start_s: float, end_s: float | None, **changes: object) -> ReplicaInterval:
    values = {
        "replica_id": "r", "sequence": 1, "deployment": "chat", "tier": "serverless", "status": status,
        "started_at_us": NOON_US + int(start_s * S), "memory_bytes": 10, "cores": 2.0, "gpus": 1,
        "ended_at_us": None if end_s is None else NOON_US + int(end_s * S), **changes,
    }  # fmt: skip
    return ReplicaInterval(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], Spread(None, None)), ([3.0], Spread(3.0, 3.0)), ([1.0, 2.0], Spread(1.0, 2.0)),
     ([float(n) for n in range(1, 101)], Spread(50.0, 99.0)), ([float(n) for n in range(1, 102)], Spread(51.0, 100.0))],
    ids=["nothing", "one", "two", "a hundred", "a hundred and one"],
)  # fmt: skip
def test_percentiles_are_of_the_nearest_rank(values: list[float], expected: Spread) -> None:
    assert spread(values) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_percentile_is_a_measured_value_that_enough_values_do_not_exceed(values: list[float]) -> None:
    result = spread(values)
    for percent, value in ((50, result.p50), (99, result.p99)):
        assert value in values
        assert sum(other <= value for other in values) * 100 >= percent * len(values)
        assert sum(other < value for other in values) * 100 < percent * len(values)


def test_open_requests_count_but_have_no_figures() -> None:
    (row,) = request_rows(WINDOW, [(an_intent("a"), None), (an_intent("b"), a_settlement("b"))])
    assert (row.num_requests, row.num_open, row.outcomes) == (2, 1, {"completed": 1})
    assert row.queue_s == Spread(0.1, 0.1)
    assert row.cold_start_s == Spread(None, None)


def test_throughput_is_over_the_span_of_the_requests() -> None:
    (row,) = request_rows(WINDOW, [(an_intent(), a_settlement(output_tokens=50, settled_at_us=NOON_US + 2 * S))])
    assert row.output_tokens_per_s == 25.0


def test_overlapping_attempts_of_one_replica_are_busy_once() -> None:
    def run(number: int, replica_id: str, start_s: float, end_s: float) -> Recorded:
        attempt = an_attempt(
            replica_id=replica_id, queue_s=0.0, started_at_us=NOON_US + int(start_s * S),
            ended_at_us=NOON_US + int(end_s * S),
        )  # fmt: skip
        return an_intent(str(number)), a_settlement(str(number), attempts=(attempt,))

    runs = [run(1, "a", 0, 10), run(2, "a", 5, 12), run(3, "a", 20, 21), run(4, "b", 5, 6), run(5, "a", 98, 300)]
    assert busy_us_by_deployment(WINDOW, runs) == {("chat", "serverless"): (12 + 1 + 1 + 2) * S}


def test_queueing_is_not_busy() -> None:
    recorded = [(an_intent(), a_settlement(attempts=(an_attempt(queue_s=0.2),)))]
    assert busy_us_by_deployment(WINDOW, recorded) == {("chat", "serverless"): 300_000}


def test_capacity_is_cut_at_the_window_and_open_intervals_reach_its_end() -> None:
    held = [interval("starting", -5, 10), interval("ready", 10, None), interval("ready", 200, 300)]
    (row,) = capacity_rows(
        WINDOW, held, busy_us={("chat", "serverless"): 45 * S}, output_tokens={("chat", "serverless"): 300}
    )
    assert (row.reserved_s, row.ready_s, row.busy_s) == (100.0, 90.0, 45.0)
    assert (row.memory_byte_s, row.core_s, row.gpu_s) == (1000.0, 200.0, 100.0)
    assert row.utilisation_ratio == 0.5
    assert row.effective_output_tokens_per_s == 3.0


rows = st.lists(
    st.tuples(
        st.integers(-10, 200), st.sampled_from(["x", "y"]), st.sampled_from(["t", "u"]),
        st.none() | st.tuples(st.none() | st.integers(0, 50), st.none() | st.floats(0, 5)),
    ),
    max_size=30,
)  # fmt: skip


@given(rows, st.sets(st.sampled_from(DIMENSIONS)))
def test_groups_add_up_to_the_whole(
    drawn: list[tuple[int, str, str, tuple[int | None, float | None] | None]], dimensions: set[str]
) -> None:
    recorded: list[Recorded] = []
    for number, (at_s, deployment, tenant, settled) in enumerate(drawn):
        intent = an_intent(str(number), arrived_at_us=NOON_US + at_s * S, deployment=deployment, tenant=tenant)
        settlement = None
        if settled is not None:
            settlement = a_settlement(
                str(number), output_tokens=settled[0], price_nanousd=settled[0], itl_mean_s=settled[1]
            )
        recorded.append((intent, settlement))
    query = UsageQuery(WINDOW.since_us, WINDOW.until_us, tuple(d for d in DIMENSIONS if d in dimensions))
    grouped = request_rows(query, recorded)
    whole = request_rows(UsageQuery(WINDOW.since_us, WINDOW.until_us, ()), recorded)
    for name in ("num_requests", "num_open", "output_tokens", "price_nanousd", "num_unpriced", "num_exact_usage"):
        assert sum(getattr(row, name) for row in grouped) == sum(getattr(row, name) for row in whole)
    assert len({row.group for row in grouped}) == len(grouped)


@given(st.lists(st.tuples(st.floats(-50, 150), st.floats(0, 200), st.sampled_from(["ready", "starting"])), max_size=20))
def test_ready_time_is_part_of_reserved_time(spans: list[tuple[float, float, str]]) -> None:
    held = [
        interval(status, start, start + length, replica_id=str(n)) for n, (start, length, status) in enumerate(spans)
    ]
    for row in usage_report(WINDOW, [], held).capacity:
        assert row.ready_s <= row.reserved_s <= 100.0 * row.num_replicas
        assert math.isclose(row.core_s, 2 * row.reserved_s)
