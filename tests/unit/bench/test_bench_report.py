from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.overhead import Scenario, Tally, compare
from bench.report import fill, render, rewrite, table
from bench.statistics import Goal

PAGE = "# Head\n\nProse.\n\n<!-- bench:{name} -->\nold words\n<!-- /bench:{name} -->\n\nEnd.\n"


def document(**changes: Any) -> dict[str, Any]:
    set_up = {
        "date": "2026-11-21T05:00:00+00:00", "command": "python -m bench overhead", "is_quick": False, "commit": "abc",
        "cpu": "A CPU", "num_cores": 2, "memory_gib": 24.0, "kernel": "6.1", "python": "3.11.2",
        "versions": {"stoker": "0.1.0"}, "load_average_before": [0.1, 0.1, 0.1], "took_s": 61.0,
    }  # fmt: skip
    direct, proxied = Tally([1000.0], [1.0, 2.0], [1.0, 2.0]), Tally([500.0], [1.5, 2.5], [1.4, 2.4], [60.0])
    results = {
        "stoker": {
            "processes": ["a", "b"], "memory_pss_mib": 90.0, "state_filesystem": "ext4",
            "disk_sync_ms": {"n": 100, "p50": 0.2, "p99": 0.9}, "core_used_by_others_ratio": 0.25,
        },
        "ceiling": {"busy": 50000.0},
        "scenarios": [compare(Scenario("instant", 32), direct, proxied)],
    }  # fmt: skip
    goals = {
        "cpu_us_per_request": Goal("cpu_us_per_request", 100, "at_most", "CPU").check(60.0),
        "added_p50_ms": Goal("added_p50_ms", 0.5, "at_most", "added").check(0.7),
    }
    return {"name": "overhead", "setup": set_up, "goals": goals, "results": results} | changes


def test_a_goal_that_is_missed_is_shown_as_missed() -> None:
    shown = render(document())
    assert "| `cpu_us_per_request`: CPU | 60 | ≤ 100 | yes |" in shown
    assert "| `added_p50_ms`: added | 0.7 | ≤ 0.5 | **no** |" in shown


def test_a_quick_run_says_so() -> None:
    quick = document()
    quick["setup"]["is_quick"] = True
    assert "Quick run" in render(quick)
    assert "Quick run" not in render(document())


def test_how_much_of_the_core_others_had_is_told() -> None:
    assert "Other programs had 25% of Stoker's core meanwhile." in render(document())


def test_the_figures_of_each_load_are_a_row() -> None:
    row = next(line for line in render(document()).splitlines() if line.startswith("| instant upstream"))
    assert row == "| instant upstream, whole answer, 32 connections | 2 | 500 | 60 | 1 | 1.5 | 2.5 | 0.5 | 0.5 | 0.4 |"


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    filled = fill(PAGE.format(name="overhead"), {"overhead": document()})
    assert filled.startswith("# Head\n\nProse.\n\n<!-- bench:overhead -->\n")
    assert filled.endswith("<!-- /bench:overhead -->\n\nEnd.\n")
    assert "old words" not in filled
    assert fill(filled, {"overhead": document()}) == filled


def test_a_place_without_a_result_says_that_nothing_was_measured() -> None:
    assert "Not measured yet." in fill(PAGE.format(name="overhead"), {})


def test_a_result_without_a_place_is_refused() -> None:
    with pytest.raises(KeyError, match="overhead"):
        fill(PAGE.format(name="cold_start"), {"overhead": document()})


def test_the_page_is_rewritten_from_the_files(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(PAGE.format(name="overhead"))
    results = tmp_path / "benchmarks"
    results.mkdir()
    (results / "overhead.json").write_text(json.dumps(document()))
    assert rewrite(page, results) == page
    assert "instant upstream, whole answer" in page.read_text()


def test_a_cell_may_not_break_the_table() -> None:
    assert table(("a", "b"), [("x | y", None)]) == "| a | b |\n|---|---:|\n| x \\| y | – |"
