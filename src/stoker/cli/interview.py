"""From four answers to a deployment's settings: what `stoker deploy` asks and what it makes of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stoker.errors import BadRequest

Tier = Literal["serverless", "dedicated"]
Objective = Literal["cost", "latency", "throughput"]
OBJECTIVES: Mapping[Objective, str] = {
    "cost": "scale to zero where the tier allows it, wake on request",
    "latency": "one replica is always warm, one request at a time on each",
    "throughput": "one replica is always warm, many requests at a time on each",
}
_HARDWARE = re.compile(r"^\s*(?P<kind>cpu|gpu)?\s*[x×]?\s*(?P<count>\d+)?\s*$", re.IGNORECASE)
_MAX_COUNT = 1000
_THROUGHPUT_SLOTS = 8
"""Batches pay until compute saturates; 8 is a start that fits small models on few cores."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What somebody wants.

    Attributes:
        count: replicas: reserved on dedicated, at most on serverless.
        gpus: whole devices per replica.
        region: None: anywhere.
    """

    model: str
    count: int
    gpus: int
    tier: Tier
    region: str | None
    objective: Objective


def parse_hardware(text: str) -> tuple[int, int]:
    """Read `cpu`, `cpu x2`, `gpu x1` or `2` as (GPUs per replica, replicas).

    Raises:
        BadRequest
    """
    match = _HARDWARE.match(text)
    count = int(match["count"] or 1) if match is not None and text.strip() else 0
    if match is None or not 1 <= count <= _MAX_COUNT:
        raise BadRequest(f"{text[:40]!r} is no hardware and count", mend="write cpu, cpu x2 or gpu x1")
    return (1 if (match["kind"] or "cpu").lower() == "gpu" else 0), count


def parse_tier(text: str) -> tuple[Tier, str | None]:
    """Read `serverless`, `dedicated` or `dedicated eu-west` as (tier, region).

    Raises:
        BadRequest
    """
    words = text.replace(",", " ").split()
    if len(words) in {1, 2}:
        for tier in ("serverless", "dedicated"):
            if tier.startswith(words[0].lower()):
                return tier, words[1] if len(words) == 2 else None
    raise BadRequest(f"{text[:40]!r} is no tier", mend="write serverless or dedicated, then a region if any")


def parse_objective(text: str) -> Objective:
    """Read an objective or its beginning.

    Raises:
        BadRequest
    """
    wanted = text.strip().lower()
    for objective in OBJECTIVES:
        if wanted and objective.startswith(wanted):
            return objective
    raise BadRequest(f"{text[:40]!r} is no objective", mend=f"write {', '.join(OBJECTIVES)}")


def parse_model(text: str, names: list[str]) -> str:
    """Read a model's name or its number in the list, from 1.

    Raises:
        BadRequest
    """
    wanted = text.strip()
    if wanted in names:
        return wanted
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= len(names):
        return names[int(wanted) - 1]
    raise BadRequest(f"there is no model {text[:60]!r} in the list", mend=f"write a name or 1 to {len(names)}")


def settings_of(answers: Answers, profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deployment's declaration.

    Args:
        profile: what the catalogue suggests for this model; the objective goes over it.
    """
    engine: dict[str, Any] = dict(profile.get("engine") or {})
    if answers.objective == "latency":
        engine["slots"] = 1
    elif answers.objective == "throughput":
        engine["slots"] = max(int(engine.get("slots", 1)), _THROUGHPUT_SLOTS)
    settings: dict[str, Any] = {**profile, "model": answers.model, "tier": answers.tier}
    if engine:
        settings["engine"] = engine
    if answers.tier == "dedicated":
        settings["replicas"] = answers.count
    else:
        settings["min_replicas"] = 0 if answers.objective == "cost" else 1
        settings["max_replicas"] = answers.count
    if answers.gpus:
        settings["gpus"] = answers.gpus
    if answers.region:
        settings["regions"] = [answers.region]
    return settings


def free_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or `wanted-2`, `wanted-3`, … when it is taken."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Read `engine.slots=2` as `{"engine": {"slots": 2}}`; a value that is no JSON is text.

    Raises:
        BadRequest
    """
    import json  # noqa: PLC0415 - only `--set` needs it

    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise BadRequest(f"{assignment[:60]!r} is no assignment", mend="write --set engine.slots=2")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place = settings
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise BadRequest(f"{key} stands below a value that was set before")
        place[parts[-1]] = value
    return settings
