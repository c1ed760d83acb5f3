"""Quantiles of samples, and the goals that they are held against. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: the smallest sample that at least `share` (0–1) of all samples do not exceed.

    Raises:
        ValueError: without samples, or when `share` is outside 0–1.
    """
    if not values:
        raise ValueError("a quantile needs at least one sample")
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, not {share}")
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


def median(values: Sequence[float]) -> float:
    """The nearest-rank median, so that it is always a figure that was measured."""
    return quantile(values, 0.5)


def summarise(values: Sequence[float], *, digits: int = 3) -> dict[str, float]:
    """n, min, mean, p50, p90, p99 and max in the samples' own unit; only `n` without samples."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    figures = {
        "min": ordered[0],
        "mean": math.fsum(ordered) / len(ordered),
        "p50": quantile(ordered, 0.50),
        "p90": quantile(ordered, 0.90),
        "p99": quantile(ordered, 0.99),
        "max": ordered[-1],
    }
    return {"n": len(ordered), **{name: round(value, digits) for name, value in figures.items()}}


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a measured figure is held against.

    Attributes:
        bound: which side of `limit` is good; the limit itself is good.
        says: what the figure is, in one clause, with its unit.
    """

    key: str
    limit: float
    bound: Literal["at_most", "at_least"]
    says: str

    def check(self, value: float | None) -> dict[str, Any]:
        """The goal's entry in the report; a figure that could not be measured (None, NaN) never meets it."""
        is_known = value is not None and not math.isnan(value)
        is_met = is_known and (value <= self.limit if self.bound == "at_most" else value >= self.limit)
        return {
            "value": round(value, 4) if is_known else None,
            "goal": self.limit,
            "bound": self.bound,
            "met": bool(is_met),
            "says": self.says,
        }
