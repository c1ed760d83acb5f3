"""What can happen to a replica, in words and as JSON for the log. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import get_args


@dataclass(frozen=True, slots=True)
class StartOrdered:
    """Bring it up; `start_timeout_s` bounds launch to ready."""

    reason: str
    start_timeout_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class Adopted:
    """A predecessor's process, found ready with the keeper."""

    reason: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The keeper runs it; `pid` is None for a server that somebody else runs."""

    pid: int | None


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """The program could not be run at all."""

    words: str


@dataclass(frozen=True, slots=True)
class HealthPassed:
    """The engine says that it can serve."""


@dataclass(frozen=True, slots=True)
class HealthLost:
    """A ready engine no longer answers for itself."""

    detail: str


@dataclass(frozen=True, slots=True)
class StartTimedOut:
    """It was not ready in time."""

    after_s: float


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The process ended and was reaped."""

    exit_code: int | None
    signal: int | None
    last_words: str


@dataclass(frozen=True, slots=True)
class DrainOrdered:
    """Take no more requests, end those in flight within `drain_timeout_s`, then stop."""

    reason: str
    drain_timeout_s: float


@dataclass(frozen=True, slots=True)
class Drained:
    """The last request in flight ended."""


@dataclass(frozen=True, slots=True)
class DrainTimedOut:
    """Requests in flight outlived the drain."""

    num_cut: int


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """Stop now, whatever is in flight."""

    reason: str


@dataclass(frozen=True, slots=True)
class GraceElapsed:
    """SIGTERM was not heeded, or SIGKILL not yet reported."""


@dataclass(frozen=True, slots=True)
class KeeperLost:
    """The keeper, and every process with it, is gone."""

    detail: str


@dataclass(frozen=True, slots=True)
class HandedOver:
    """This server goes and leaves the process to the keeper for the next one."""


@dataclass(frozen=True, slots=True)
class TierChanged:
    """The deployment moved between tiers; the process does not notice."""

    tier: str


ReplicaEvent = (
    StartOrdered
    | Adopted
    | ProcessStarted
    | LaunchFailed
    | HealthPassed
    | HealthLost
    | StartTimedOut
    | ProcessExited
    | DrainOrdered
    | Drained
    | DrainTimedOut
    | StopOrdered
    | GraceElapsed
    | KeeperLost
    | HandedOver
    | TierChanged
)
EVENT_TYPES: tuple[type[ReplicaEvent], ...] = get_args(ReplicaEvent)

# ---------------------------------------------------------------------------------------------- words and JSON

_MAX_WORDS = 600  # characters of an engine's output in a message: the last lines, not the whole log


def describe(event: ReplicaEvent) -> str:
    """Say in one clause why a replica moved."""
    match event:
        case StartOrdered() | Adopted() | DrainOrdered() | StopOrdered():
            return event.reason
        case ProcessStarted(pid):
            return "another's server" if pid is None else f"process {pid}"
        case LaunchFailed(words):
            return f"the program could not be run: {words}"
        case HealthPassed():
            return "the engine is healthy"
        case HealthLost(detail):
            return f"the engine lost its health: {detail}"
        case StartTimedOut(after_s):
            return f"the engine was not ready within {after_s:g} s"
        case ProcessExited(exit_code, signal, last_words):
            how = f"was ended by signal {signal}" if exit_code is None else f"exited with code {exit_code}"
            words = last_words.strip()[-_MAX_WORDS:]
            return f"the engine {how}: {words}" if words else f"the engine {how} without a word"
        case Drained():
            return "the last request ended"
        case DrainTimedOut(num_cut):
            return f"the drain timed out and cut {num_cut} requests"
        case GraceElapsed():
            return "it did not end within its grace"
        case KeeperLost(detail):
            return f"the keeper was lost: {detail}"
        case HandedOver():
            return "left to the keeper for the next server"
        case TierChanged(tier):
            return f"moved to {tier}"


_EVENT_BY_NAME: Mapping[str, type[ReplicaEvent]] = {kind.__name__: kind for kind in EVENT_TYPES}


def event_to_json(event: ReplicaEvent) -> str:
    """Write an event with sorted keys, so that equal events are equal bytes."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}, sort_keys=True, separators=(",", ":"))


def event_from_json(text: str) -> ReplicaEvent:
    """Read what `event_to_json` wrote.

    Raises:
        ValueError: the text is not an event of this table.
    """
    try:
        fields = json.loads(text)
        return _EVENT_BY_NAME[fields.pop("event")](**fields)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as exc:
        raise ValueError(f"not a replica event: {text[:200]!r}") from exc
