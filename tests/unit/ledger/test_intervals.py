"""State intervals: one event at a time, and whole logs replayed."""

import json
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stoker.ledger.domain.intervals import intervals_from_events, move_interval, orphan_transition
from stoker.ledger.records import ReplicaInterval, ReplicaTransition

# A lifecycle as small as can be: state and event name → next state.
TABLE = {
    ("cold", "launch"): "starting",
    ("starting", "healthy"): "ready",
    ("starting", "tick"): "starting",
    ("ready", "tick"): "ready",
    ("ready", "drain"): "draining",
    ("draining", "exit"): "stopped",
    ("starting", "exit"): "failed",
    ("ready", "exit"): "failed",
}
FINAL = {"stopped", "failed"}


def step(state: str, event: str) -> str:
    return TABLE[state, json.loads(event)["event"]]


def replay(events: list[ReplicaTransition]) -> tuple[ReplicaInterval, ...]:
    return intervals_from_events(
        events, initial=lambda _: "cold", step=step, status_of=lambda s: s, is_final=lambda s: s in FINAL
    )


def logged(replica_id: str, names: list[str], times_us: list[int]) -> list[ReplicaTransition]:
    state, events = "cold", []
    for sequence, (name, at_us) in enumerate(zip(names, times_us, strict=True), start=1):
        event = json.dumps({"event": name})
        after = step(state, event)
        events.append(
            ReplicaTransition(
                replica_id=replica_id, sequence=sequence, at_us=at_us, deployment="d", tier="serverless",
                event=event, from_status=state, to_status=after, is_final=after in FINAL, reason="test",
                memory_bytes=0 if after in FINAL else 100, cores=1.0, gpus=0,
            )
        )  # fmt: skip
        state = after
    return events


def live(events: list[ReplicaTransition]) -> tuple[ReplicaInterval, ...]:
    kept: dict[tuple[str, int], ReplicaInterval] = {}
    current: dict[str, ReplicaInterval | None] = {}
    for event in events:
        closed, opened = move_interval(current.get(event.replica_id), event)
        for interval in (closed, opened):
            if interval is not None:
                kept[interval.replica_id, interval.sequence] = interval
        if closed or opened:
            current[event.replica_id] = opened
    return tuple(kept[key] for key in sorted(kept))


@st.composite
def logs(draw: st.DrawFn) -> list[ReplicaTransition]:
    events: list[ReplicaTransition] = []
    for replica_id in draw(st.sets(st.sampled_from("abc"), min_size=1)):
        state, names = "cold", []
        for _ in range(draw(st.integers(1, 8))):
            choices = [name for (source, name) in TABLE if source == state]
            if not choices:
                break
            names.append(draw(st.sampled_from(choices)))
            state = TABLE[state, names[-1]]
        times_us = draw(st.lists(st.integers(0, 1000), min_size=len(names), max_size=len(names)))
        events.extend(logged(replica_id, names, times_us))
    return events


def test_an_event_that_keeps_the_status_moves_nothing() -> None:
    tick = logged("a", ["launch", "tick"], [1, 2])[1]
    assert move_interval(None, tick) == (None, None)


def test_a_full_life_is_a_chain_of_intervals() -> None:
    intervals = replay(logged("a", ["launch", "healthy", "tick", "drain", "exit"], [10, 20, 25, 30, 40]))
    assert [(i.status, i.started_at_us, i.ended_at_us) for i in intervals] == [
        ("starting", 10, 20),
        ("ready", 20, 30),
        ("draining", 30, 40),
    ]


def test_a_clock_that_steps_back_makes_an_empty_interval() -> None:
    intervals = replay(logged("a", ["launch", "healthy", "drain"], [100, 40, 130]))
    assert [(i.started_at_us, i.ended_at_us) for i in intervals] == [(100, 100), (100, 130), (130, None)]


def test_an_orphaned_replica_ends_without_the_lifecycle_table() -> None:
    events = logged("a", ["launch", "healthy"], [10, 20])
    still_open = replay(events)[-1]
    events.append(orphan_transition(still_open, sequence=3, at_us=50))
    assert replay(events)[-1] == replace(still_open, ended_at_us=50)


@given(logs())
def test_replaying_a_log_reproduces_the_intervals_that_were_kept_live(events: list[ReplicaTransition]) -> None:
    assert replay(list(reversed(events))) == live(events)


@given(logs())
def test_the_intervals_of_a_replica_never_overlap(events: list[ReplicaTransition]) -> None:
    intervals = replay(events)
    for before, after in pairwise(intervals):
        if before.replica_id == after.replica_id:
            assert before.ended_at_us == after.started_at_us
