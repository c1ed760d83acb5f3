"""How replica events make state intervals, live and on replay. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from stoker.ledger.records import ReplicaInterval, ReplicaTransition

ORPHANED_EVENT = '{"event": "orphaned"}'
"""The ledger's own event: at start-up the replica was in no server's hands, so it holds nothing any more."""
ORPHANED_STATUS = "stopped"

_State = TypeVar("_State")


def move_interval(
    current: ReplicaInterval | None, transition: ReplicaTransition
) -> tuple[ReplicaInterval | None, ReplicaInterval | None]:
    """Apply one event to a replica's open interval.

    The wall clock may step back between two events; an interval then has length 0 and the next begins where it ended,
    so that the intervals of a replica never overlap.

    Args:
        current: the replica's open interval, None when it has none.

    Returns:
        The interval that ends here (with its end) and the one that begins here; None for either that is not.
    """
    if transition.from_status == transition.to_status:
        return None, None
    at_us = transition.at_us if current is None else max(transition.at_us, current.started_at_us)
    closed = None if current is None else replace(current, ended_at_us=at_us)
    if transition.is_final:
        return closed, None
    return closed, ReplicaInterval(
        replica_id=transition.replica_id,
        sequence=transition.sequence,
        deployment=transition.deployment,
        tier=transition.tier,
        status=transition.to_status,
        started_at_us=at_us,
        ended_at_us=None,
        memory_bytes=transition.memory_bytes,
        cores=transition.cores,
        gpus=transition.gpus,
    )


def orphan_transition(current: ReplicaInterval, *, sequence: int, at_us: int) -> ReplicaTransition:
    """Return the event that closes the open interval of a replica whose server died and whom nobody adopted."""
    return ReplicaTransition(
        replica_id=current.replica_id,
        sequence=sequence,
        at_us=at_us,
        deployment=current.deployment,
        tier=current.tier,
        event=ORPHANED_EVENT,
        from_status=current.status,
        to_status=ORPHANED_STATUS,
        is_final=True,
        reason="its server died and no later one adopted it",
        memory_bytes=0,
        cores=0.0,
        gpus=0,
    )


def intervals_from_events(
    events: Iterable[ReplicaTransition],
    *,
    initial: Callable[[ReplicaTransition], _State],
    step: Callable[[_State, str], _State],
    status_of: Callable[[_State], str],
    is_final: Callable[[_State], bool],
) -> tuple[ReplicaInterval, ...]:
    """Replay an event log through a lifecycle table and return the intervals that it implies.

    The statuses come from the table alone; the log's own `from_status`, `to_status` and `is_final` are not looked at.

    Args:
        events: in any order; each replica's are taken by `sequence`.
        initial: a replica's state before its first event, which is given.
        step: the table: state and event (JSON) → next state.
        status_of, is_final: what a state is called, and whether it holds nothing any more.

    Returns:
        Intervals sorted by replica and sequence.
    """
    states: dict[str, _State] = {}
    open_intervals: dict[str, ReplicaInterval | None] = {}
    finished: list[ReplicaInterval] = []
    for event in sorted(events, key=lambda e: (e.replica_id, e.sequence)):
        before = states[event.replica_id] if event.replica_id in states else initial(event)
        if event.event == ORPHANED_EVENT:
            moved = replace(event, from_status=status_of(before), to_status=ORPHANED_STATUS, is_final=True)
        else:
            after = step(before, event.event)
            states[event.replica_id] = after
            moved = replace(event, from_status=status_of(before), to_status=status_of(after), is_final=is_final(after))
        current = open_intervals.get(event.replica_id)
        closed, opened = move_interval(current, moved)
        if closed is not None:
            finished.append(closed)
        if closed is not None or opened is not None:
            open_intervals[event.replica_id] = opened
    finished.extend(interval for interval in open_intervals.values() if interval is not None)
    return tuple(sorted(finished, key=lambda i: (i.replica_id, i.sequence)))
