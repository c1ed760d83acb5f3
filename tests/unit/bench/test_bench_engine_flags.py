from __future__ import annotations

import math
from collections import Counter

import pytest

from bench.engine_flags import CONTEXT_TOKENS, DEFAULTS, Contender, contenders, halve

FIELD = tuple(Contender(name, {}) for name in ("slow", "fast", "broken", "middling", "slower"))
TIMES = {"slow": 3.0, "fast": 1.0, "broken": math.inf, "middling": 2.0, "slower": 4.0}


def test_the_fastest_stay_and_come_out_best_first() -> None:
    finalists, _ = halve(FIELD, lambda contender: TIMES[contender.name], samples_a_round=2, num_finalists=2)
    assert [contender.name for contender in finalists] == ["fast", "middling"]


def test_a_contender_that_is_out_is_not_measured_again() -> None:
    _, samples = halve(FIELD, lambda contender: TIMES[contender.name], samples_a_round=2, num_finalists=1)
    assert {name: len(values) for name, values in samples.items()} == {
        "fast": 8, "middling": 6, "slow": 4, "slower": 2, "broken": 2,
    }  # fmt: skip


def test_contenders_take_turns_within_a_round() -> None:
    order: list[str] = []

    def measure(contender: Contender) -> float:
        order.append(contender.name)
        return TIMES[contender.name]

    halve(FIELD, measure, samples_a_round=2, num_finalists=5)
    names = [contender.name for contender in FIELD]
    assert order == names * 2


def test_names_are_unique_and_the_defaults_take_part() -> None:
    field = contenders()
    assert max(Counter(contender.name for contender in field).values()) == 1
    assert DEFAULTS in field
    assert set(contenders(is_quick=True)) < set(field)


@pytest.mark.parametrize("contender", [c for c in contenders() if c.name.startswith("lean")], ids=lambda c: c.name)
def test_every_lean_contender_serves_the_same_context(contender: Contender) -> None:
    assert contender.flags["n_ctx"] == CONTEXT_TOKENS
