from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import Goal, median, quantile, summarise

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([7.0], 0.99, 7.0, id="one sample is every quantile"),
        pytest.param([1.0, 2.0, 3.0], 0.5, 2.0, id="the middle of three"),
        pytest.param([4.0, 1.0, 3.0, 2.0], 0.5, 2.0, id="an even count takes the lower middle, which was measured"),
        pytest.param(list(range(1, 101)), 0.99, 99, id="p99 of a hundred is the 99th"),
        pytest.param(list(range(1, 101)), 0.0, 1, id="share 0 is the least"),
        pytest.param(list(range(1, 101)), 1.0, 100, id="share 1 is the greatest"),
    ],
)
def test_the_nearest_rank_is_taken(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


@given(SAMPLES, st.floats(0, 1))
def test_a_quantile_is_a_sample_that_enough_samples_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_no_samples_and_no_share_are_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match=r"quantile|share"):
        quantile(values, share)


@given(SAMPLES)
def test_a_summary_is_ordered(values: list[float]) -> None:
    figures = summarise(values, digits=9)
    assert figures["n"] == len(values)
    assert figures["min"] <= figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["max"]
    assert figures["p50"] == round(median(values), 9)


def test_a_summary_of_nothing_claims_nothing() -> None:
    assert summarise([]) == {"n": 0}


@pytest.mark.parametrize(
    ("bound", "value", "is_met"),
    [
        pytest.param("at_most", 1.1, True, id="the limit itself is good"),
        pytest.param("at_most", 1.1001, False, id="above the limit"),
        pytest.param("at_least", 1.1, True, id="a lower bound reached"),
        pytest.param("at_least", 1.0, False, id="a lower bound missed"),
        pytest.param("at_most", None, False, id="not measured is not met"),
        pytest.param("at_most", math.nan, False, id="not a number is not met"),
    ],
)
def test_a_goal_is_held_against_its_bound(bound: str, value: float | None, is_met: bool) -> None:
    checked = Goal("key", 1.1, bound, "a ratio").check(value)  # type: ignore[arg-type]
    assert checked["met"] is is_met
    assert checked["goal"] == 1.1
    assert checked["value"] is None or checked["value"] == value
