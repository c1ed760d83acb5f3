"""A replica's life as a table: (state, event) → (state, effects). Pure.

| status   | meaning                                         | leaves by                                             |
|----------|-------------------------------------------------|-------------------------------------------------------|
| cold     | known, nothing runs, nothing reserved           | StartOrdered → starting, Adopted → ready              |
| starting | its process runs and does not serve yet         | HealthPassed → ready, StartTimedOut/order → stopping, |
|          |                                                 | ProcessExited/LaunchFailed/KeeperLost → failed        |
| ready    | open for requests                               | DrainOrdered → draining, StopOrdered/HealthLost →     |
|          |                                                 | stopping, ProcessExited/KeeperLost → failed,          |
|          |                                                 | HandedOver → stopped                                  |
| draining | closed, requests in flight go on                | Drained/DrainTimedOut/StopOrdered → stopping,         |
|          |                                                 | ProcessExited/KeeperLost → failed                     |
| stopping | SIGTERM sent, SIGKILL after each further grace  | ProcessExited/KeeperLost → stopped or failed          |
| stopped  | final, as ordered                               |                                                       |
| failed   | final, `failure` says why                       |                                                       |

Every pair of status and event has one row: it moves, is ignored (a report that came too late), or is refused (an order
that makes no sense there). Standby levels will be further statuses with their own rows; a missing row fails at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Status = Literal["cold", "starting", "ready", "draining", "stopping", "stopped", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
FINAL_STATUSES: frozenset[Status] = frozenset({"stopped", "failed"})
TimerKind = Literal["start", "drain", "grace"]

# ---------------------------------------------------------------------------------------------- state


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """Where one replica is.

    Attributes:
        grace_s: seconds between SIGTERM and SIGKILL.
        failure: why it stops or stopped against our will, None otherwise.
    """

    status: Status = "cold"
    grace_s: float = 5.0
    failure: str | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATUSES


# ---------------------------------------------------------------------------------------------- events


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

# ---------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class LaunchProcess:
    """Have the keeper start the process."""


@dataclass(frozen=True, slots=True)
class AskHealth:
    """Ask the engine until it is ready."""


@dataclass(frozen=True, slots=True)
class OpenForRequests:
    """Grant slots on it, and tell the keeper that it may outlive this server."""


@dataclass(frozen=True, slots=True)
class CloseForRequests:
    """Grant no more slots, and tell the keeper that it may not outlive this server."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL, descendants included."""


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Report when `after_s` seconds have passed; replaces a running timer of its kind."""

    kind: TimerKind
    after_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    kind: TimerKind


@dataclass(frozen=True, slots=True)
class FailWaiters:
    """Whoever can only be served by this replica learns the engine's words now."""

    words: str


@dataclass(frozen=True, slots=True)
class ReleaseReservation:
    """Its memory, cores and GPUs are free again."""


@dataclass(frozen=True, slots=True)
class EventRefused:
    """The order made no sense here; nothing changed."""

    reason: str


Effect = (
    LaunchProcess
    | AskHealth
    | OpenForRequests
    | CloseForRequests
    | Terminate
    | Kill
    | StartTimer
    | CancelTimer
    | FailWaiters
    | ReleaseReservation
    | EventRefused
)

# ---------------------------------------------------------------------------------------------- the table

_Outcome = tuple[ReplicaState, tuple[Effect, ...]]
_Row = Callable[[ReplicaState, Any], _Outcome]


def _ignore(state: ReplicaState, _event: ReplicaEvent) -> _Outcome:
    """A report about something that is over, or an order that is already carried out."""
    return state, ()


def _refuse(state: ReplicaState, event: ReplicaEvent) -> _Outcome:
    return state, (EventRefused(f"{type(event).__name__} makes no sense for a {state.status} replica"),)


def _note(state: ReplicaState, _event: ReplicaEvent) -> _Outcome:
    """Keep the event in the log; the process does not notice."""
    return state, ()


def _start(state: ReplicaState, event: StartOrdered) -> _Outcome:
    return replace(state, status="starting", grace_s=event.grace_s), (
        StartTimer("start", event.start_timeout_s),
        LaunchProcess(),
    )


def _adopt(state: ReplicaState, event: Adopted) -> _Outcome:
    return replace(state, status="ready", grace_s=event.grace_s), (OpenForRequests(),)


def _ask_health(state: ReplicaState, _event: ProcessStarted) -> _Outcome:
    return state, (AskHealth(),)


def _open(state: ReplicaState, _event: HealthPassed) -> _Outcome:
    return replace(state, status="ready"), (CancelTimer("start"), OpenForRequests())


def _never_started(state: ReplicaState, _event: ReplicaEvent) -> _Outcome:
    return replace(state, status="stopped"), (ReleaseReservation(),)


def _fail_start(state: ReplicaState, event: ProcessExited | LaunchFailed | KeeperLost) -> _Outcome:
    words = describe(event)
    return replace(state, status="failed", failure=words), (
        CancelTimer("start"),
        ReleaseReservation(),
        FailWaiters(words),
    )


def _time_out_start(state: ReplicaState, event: StartTimedOut) -> _Outcome:
    words = describe(event)
    return replace(state, status="stopping", failure=words), (
        Terminate(),
        StartTimer("grace", state.grace_s),
        FailWaiters(words),
    )


def _abandon_start(state: ReplicaState, _event: DrainOrdered | StopOrdered) -> _Outcome:
    return replace(state, status="stopping"), (CancelTimer("start"), Terminate(), StartTimer("grace", state.grace_s))


def _drain(state: ReplicaState, event: DrainOrdered) -> _Outcome:
    return replace(state, status="draining"), (CloseForRequests(), StartTimer("drain", event.drain_timeout_s))


def _stop_ready(state: ReplicaState, _event: StopOrdered) -> _Outcome:
    return replace(state, status="stopping"), (CloseForRequests(), Terminate(), StartTimer("grace", state.grace_s))


def _stop_unhealthy(state: ReplicaState, event: HealthLost) -> _Outcome:
    words = describe(event)
    return replace(state, status="stopping", failure=words), (
        CloseForRequests(),
        Terminate(),
        StartTimer("grace", state.grace_s),
        FailWaiters(words),
    )


def _fail_ready(state: ReplicaState, event: ProcessExited | KeeperLost) -> _Outcome:
    words = describe(event)
    return replace(state, status="failed", failure=words), (
        CloseForRequests(),
        ReleaseReservation(),
        FailWaiters(words),
    )


def _hand_over(state: ReplicaState, _event: HandedOver) -> _Outcome:
    return replace(state, status="stopped"), (ReleaseReservation(),)


def _stop_drained(state: ReplicaState, _event: Drained | DrainTimedOut | StopOrdered) -> _Outcome:
    return replace(state, status="stopping"), (CancelTimer("drain"), Terminate(), StartTimer("grace", state.grace_s))


def _fail_draining(state: ReplicaState, event: ProcessExited | KeeperLost) -> _Outcome:
    return replace(state, status="failed", failure=describe(event)), (CancelTimer("drain"), ReleaseReservation())


def _kill(state: ReplicaState, _event: GraceElapsed) -> _Outcome:
    # Again after every grace: an exit report that never comes must not leave the replica without anybody trying.
    return state, (Kill(), StartTimer("grace", state.grace_s))


def _end(state: ReplicaState, _event: ProcessExited | LaunchFailed | KeeperLost) -> _Outcome:
    status: Status = "failed" if state.failure is not None else "stopped"
    return replace(state, status=status), (CancelTimer("grace"), ReleaseReservation())


_COLD: Mapping[type[ReplicaEvent], _Row] = {
    StartOrdered: _start,
    Adopted: _adopt,
    ProcessStarted: _ignore,
    LaunchFailed: _ignore,
    HealthPassed: _ignore,
    HealthLost: _ignore,
    StartTimedOut: _ignore,
    ProcessExited: _ignore,
    DrainOrdered: _never_started,
    Drained: _ignore,
    DrainTimedOut: _ignore,
    StopOrdered: _never_started,
    GraceElapsed: _ignore,
    KeeperLost: _never_started,
    HandedOver: _never_started,
    TierChanged: _note,
}
_STARTING: Mapping[type[ReplicaEvent], _Row] = {
    StartOrdered: _ignore,
    Adopted: _refuse,
    ProcessStarted: _ask_health,
    LaunchFailed: _fail_start,
    HealthPassed: _open,
    HealthLost: _ignore,
    StartTimedOut: _time_out_start,
    ProcessExited: _fail_start,
    DrainOrdered: _abandon_start,
    Drained: _ignore,
    DrainTimedOut: _ignore,
    StopOrdered: _abandon_start,
    GraceElapsed: _ignore,
    KeeperLost: _fail_start,
    HandedOver: _refuse,
    TierChanged: _note,
}
_READY: Mapping[type[ReplicaEvent], _Row] = {
    StartOrdered: _ignore,
    Adopted: _refuse,
    ProcessStarted: _ignore,
    LaunchFailed: _ignore,
    HealthPassed: _ignore,
    HealthLost: _stop_unhealthy,
    StartTimedOut: _ignore,
    ProcessExited: _fail_ready,
    DrainOrdered: _drain,
    Drained: _ignore,
    DrainTimedOut: _ignore,
    StopOrdered: _stop_ready,
    GraceElapsed: _ignore,
    KeeperLost: _fail_ready,
    HandedOver: _hand_over,
    TierChanged: _note,
}
_DRAINING: Mapping[type[ReplicaEvent], _Row] = {
    StartOrdered: _refuse,
    Adopted: _refuse,
    ProcessStarted: _ignore,
    LaunchFailed: _ignore,
    HealthPassed: _ignore,
    # Streams in flight may still come to their end; the drain's own limit bounds those that cannot.
    HealthLost: _ignore,
    StartTimedOut: _ignore,
    ProcessExited: _fail_draining,
    DrainOrdered: _ignore,
    Drained: _stop_drained,
    DrainTimedOut: _stop_drained,
    StopOrdered: _stop_drained,
    GraceElapsed: _ignore,
    KeeperLost: _fail_draining,
    HandedOver: _refuse,
    TierChanged: _note,
}
_STOPPING: Mapping[type[ReplicaEvent], _Row] = {
    StartOrdered: _refuse,
    Adopted: _refuse,
    ProcessStarted: _ignore,
    LaunchFailed: _end,
    HealthPassed: _ignore,
    HealthLost: _ignore,
    StartTimedOut: _ignore,
    ProcessExited: _end,
    DrainOrdered: _ignore,
    Drained: _ignore,
    DrainTimedOut: _ignore,
    StopOrdered: _ignore,
    GraceElapsed: _kill,
    KeeperLost: _end,
    HandedOver: _refuse,
    TierChanged: _note,
}
_FINAL: Mapping[type[ReplicaEvent], _Row] = {
    StartOrdered: _refuse,
    Adopted: _refuse,
    ProcessStarted: _ignore,
    LaunchFailed: _ignore,
    HealthPassed: _ignore,
    HealthLost: _ignore,
    StartTimedOut: _ignore,
    ProcessExited: _ignore,
    DrainOrdered: _ignore,
    Drained: _ignore,
    DrainTimedOut: _ignore,
    StopOrdered: _ignore,
    GraceElapsed: _ignore,
    KeeperLost: _ignore,
    HandedOver: _ignore,
    TierChanged: _ignore,
}
_TABLE: Mapping[Status, Mapping[type[ReplicaEvent], _Row]] = {
    "cold": _COLD,
    "starting": _STARTING,
    "ready": _READY,
    "draining": _DRAINING,
    "stopping": _STOPPING,
    "stopped": _FINAL,
    "failed": _FINAL,
}
assert set(_TABLE) == set(STATUSES)
assert all(set(rows) == set(EVENT_TYPES) for rows in _TABLE.values())


def step(state: ReplicaState, event: ReplicaEvent) -> tuple[ReplicaState, tuple[Effect, ...]]:
    """Apply one event. Never raises: what makes no sense comes back as `EventRefused` with the state unchanged."""
    return _TABLE[state.status][type(event)](state, event)


def is_recorded(state: ReplicaState, event: ReplicaEvent) -> bool:
    """Return whether the event belongs in the log: it moves the replica or does something there."""
    return _TABLE[state.status][type(event)] not in (_ignore, _refuse)


def replay(events: tuple[ReplicaEvent, ...]) -> tuple[Status, ...]:
    """Return the status after each event, from cold; what the ledger's intervals must equal."""
    state = ReplicaState()
    statuses: list[Status] = []
    for event in events:
        state, _ = step(state, event)
        statuses.append(state.status)
    return tuple(statuses)


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
