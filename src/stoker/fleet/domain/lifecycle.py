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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from stoker.fleet.domain.replica_events import (
    EVENT_TYPES,
    Adopted,
    Drained,
    DrainOrdered,
    DrainTimedOut,
    GraceElapsed,
    HandedOver,
    HealthLost,
    HealthPassed,
    KeeperLost,
    LaunchFailed,
    ProcessExited,
    ProcessStarted,
    ReplicaEvent,
    StartOrdered,
    StartTimedOut,
    StopOrdered,
    TierChanged,
    describe,
    event_from_json,
    event_to_json,
)

__all__ = [
    "EVENT_TYPES",
    "FINAL_STATUSES",
    "STATUSES",
    "Adopted",
    "AskHealth",
    "CancelTimer",
    "CloseForRequests",
    "DrainOrdered",
    "DrainTimedOut",
    "Drained",
    "Effect",
    "EventRefused",
    "FailWaiters",
    "GraceElapsed",
    "HandedOver",
    "HealthLost",
    "HealthPassed",
    "KeeperLost",
    "Kill",
    "LaunchFailed",
    "LaunchProcess",
    "OpenForRequests",
    "ProcessExited",
    "ProcessStarted",
    "ReleaseReservation",
    "ReplicaEvent",
    "ReplicaState",
    "StartOrdered",
    "StartTimedOut",
    "StartTimer",
    "Status",
    "StopOrdered",
    "Terminate",
    "TierChanged",
    "TimerKind",
    "describe",
    "event_from_json",
    "event_to_json",
    "is_recorded",
    "reason_for",
    "replay",
    "step",
]

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


def reason_for(state: ReplicaState, event: ReplicaEvent) -> str:
    """Say why an event moves a replica; an exit that was ordered needs no words of the engine."""
    if state.status == "stopping" and isinstance(event, ProcessExited):
        return state.failure if state.failure is not None else "the engine ended as ordered"
    return describe(event)


def replay(events: tuple[ReplicaEvent, ...]) -> tuple[Status, ...]:
    """Return the status after each event, from cold; what the ledger's intervals must equal."""
    state = ReplicaState()
    statuses: list[Status] = []
    for event in events:
        state, _ = step(state, event)
        statuses.append(state.status)
    return tuple(statuses)
