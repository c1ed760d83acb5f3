from __future__ import annotations

import pytest

from bench.processes import parse_cpu_ticks

REST = "S 1 77 77 0 -1 4194560 900 0 0 0 11 7 3 2 20 0 4 0 5000 100 200"


@pytest.mark.parametrize("name", ["python", "a b", "evil) S 1 2 (3"])
def test_cpu_ticks_are_counted_whatever_the_process_is_called(name: str) -> None:
    assert parse_cpu_ticks(f"77 ({name}) {REST}") == 11 + 7 + 3 + 2
