from __future__ import annotations

from typing import Any

from bench.native_tools import LoadResult
from bench.overhead import SCENARIOS, Scenario, Tally, compare, goals_of


def tally(latencies_ms: list[float], first_bytes_ms: list[float], cpu_s: float | None = None) -> Tally:
    its = Tally()
    report = {"requests_per_s": 100.0, "finished": len(latencies_ms)}
    its.add(LoadResult(report, latencies_ms, first_bytes_ms), cpu_s)
    return its


def entry(scenario: Scenario, *, added_ms: float = 0.2, cpu_us: float = 50.0) -> dict[str, Any]:
    direct = tally([5.0] * 100, [5.0] * 100)
    return compare(scenario, direct, tally([5.0 + added_ms] * 100, [5.0 + added_ms] * 100, cpu_us * 100 / 1e6))


def test_what_is_added_is_the_difference_of_the_quantiles() -> None:
    direct = tally([5.0] * 98 + [6.0] * 2, [4.0] * 100)
    proxied = tally([5.3] * 98 + [9.0] * 2, [4.75] * 100, cpu_s=0.008)
    compared = compare(Scenario("5ms", 8), direct, proxied)
    assert compared["added_p50_ms"] == 0.3
    assert compared["added_p99_ms"] == 3.0
    assert compared["added_first_byte_p50_ms"] == 0.75
    assert compared["proxied"]["cpu_us_per_request"] == 80.0


def test_each_goal_takes_the_worst_load_that_it_speaks_of() -> None:
    goals = goals_of(
        [
            entry(Scenario("5ms", 1), added_ms=0.3),
            entry(Scenario("5ms", 8), added_ms=0.6),
            entry(Scenario("5ms", 8, is_stream=True), added_ms=0.9),
            entry(Scenario("instant", 32), cpu_us=90),
            entry(Scenario("5ms", 64), added_ms=30, cpu_us=110),
        ],
        None,
    )
    assert {key: (goal["value"], goal["met"]) for key, goal in goals.items()} == {
        "cpu_us_per_request": (110.0, False),
        "added_p50_ms": (0.6, False),
        "added_ttft_ms": (0.9, True),
    }


def test_the_ratio_is_a_goal_only_when_the_peer_ran() -> None:
    compared = [entry(scenario) for scenario in SCENARIOS]
    assert "litellm_rps_ratio" not in goals_of(compared, None)
    assert goals_of(compared, {"requests_per_s_ratio": 60.0})["litellm_rps_ratio"]["met"] is True


def test_the_scenarios_feed_every_goal_and_have_names_of_their_own() -> None:
    goals = goals_of([entry(scenario) for scenario in SCENARIOS], None)
    assert all(goal["value"] is not None for goal in goals.values())
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_a_stream_asks_for_usage_and_a_whole_answer_does_not_stream() -> None:
    assert Scenario("instant", 1, is_stream=True).load(1.0, ()).body["stream_options"] == {"include_usage": True}
    assert "stream" not in Scenario("instant", 1).load(1.0, ()).body
