"""The replica table: a row for every pair, and what the rows that matter do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.fleet.domain import lifecycle as life
from stoker.fleet.domain.lifecycle import ReplicaState, step

START = life.StartOrdered("asked for", 120.0, 5.0)
EXIT = life.ProcessExited(1, None, "out of memory\n")

EXAMPLES: dict[type, life.ReplicaEvent] = {
    life.StartOrdered: START,
    life.Adopted: life.Adopted("found", 5.0),
    life.ProcessStarted: life.ProcessStarted(42),
    life.LaunchFailed: life.LaunchFailed("no such file"),
    life.HealthPassed: life.HealthPassed(),
    life.HealthLost: life.HealthLost("no answer"),
    life.StartTimedOut: life.StartTimedOut(120.0),
    life.ProcessExited: EXIT,
    life.DrainOrdered: life.DrainOrdered("idle", 60.0),
    life.Drained: life.Drained(),
    life.DrainTimedOut: life.DrainTimedOut(2),
    life.StopOrdered: life.StopOrdered("the server stops"),
    life.GraceElapsed: life.GraceElapsed(),
    life.KeeperLost: life.KeeperLost("killed"),
    life.HandedOver: life.HandedOver(),
    life.TierChanged: life.TierChanged("dedicated"),
}
PATH_TO: dict[life.Status, tuple[life.ReplicaEvent, ...]] = {
    "cold": (),
    "starting": (START,),
    "ready": (START, life.HealthPassed()),
    "draining": (START, life.HealthPassed(), EXAMPLES[life.DrainOrdered]),
    "stopping": (START, life.StopOrdered("enough")),
    "stopped": (life.StopOrdered("enough"),),
    "failed": (START, EXIT),
}


def at(status: life.Status) -> ReplicaState:
    state = ReplicaState()
    for event in PATH_TO[status]:
        state, _ = step(state, event)
    assert state.status == status
    return state


@pytest.mark.parametrize("kind", life.EVENT_TYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("status", life.STATUSES)
def test_every_pair_moves_or_is_ignored_or_refused(status: life.Status, kind: type) -> None:
    state = at(status)
    after, effects = step(state, EXAMPLES[kind])
    assert after.status in life.STATUSES
    refused = any(isinstance(each, life.EventRefused) for each in effects)
    if refused:
        assert (after, len(effects)) == (state, 1)
    if after.status != state.status:
        assert life.is_recorded(state, EXAMPLES[kind])
    if state.is_final:
        assert after == state


@pytest.mark.parametrize(
    ("status", "event", "to_status", "effects"),
    [
        pytest.param("cold", START, "starting", {"StartTimer", "LaunchProcess"}, id="an order launches the process"),
        pytest.param("cold", EXAMPLES[life.Adopted], "ready", {"OpenForRequests"}, id="an adopted engine is open"),
        pytest.param(
            "starting", life.HealthPassed(), "ready", {"CancelTimer", "OpenForRequests"}, id="healthy is open"
        ),
        pytest.param(
            "starting", EXIT, "failed", {"CancelTimer", "ReleaseReservation", "FailWaiters"}, id="death tells waiters"
        ),
        pytest.param(
            "starting",
            EXAMPLES[life.StartTimedOut],
            "stopping",
            {"Terminate", "StartTimer", "FailWaiters"},
            id="a start that takes too long is ended and its waiters told",
        ),
        pytest.param(
            "starting",
            EXAMPLES[life.DrainOrdered],
            "stopping",
            {"CancelTimer", "Terminate", "StartTimer"},
            id="draining a start ends it",
        ),
        pytest.param(
            "ready", EXAMPLES[life.DrainOrdered], "draining", {"CloseForRequests", "StartTimer"}, id="a drain closes"
        ),
        pytest.param(
            "ready", EXIT, "failed", {"CloseForRequests", "ReleaseReservation", "FailWaiters"}, id="a crash closes"
        ),
        pytest.param(
            "ready",
            EXAMPLES[life.HealthLost],
            "stopping",
            {"CloseForRequests", "Terminate", "StartTimer", "FailWaiters"},
            id="without health it is ended",
        ),
        pytest.param("ready", life.HandedOver(), "stopped", {"ReleaseReservation"}, id="a hand-over leaves it running"),
        pytest.param(
            "draining", life.Drained(), "stopping", {"CancelTimer", "Terminate", "StartTimer"}, id="drained is ended"
        ),
        pytest.param(
            "draining", EXAMPLES[life.HealthLost], "draining", set(), id="streams may still come to their end"
        ),
        pytest.param("stopping", life.GraceElapsed(), "stopping", {"Kill", "StartTimer"}, id="no grace for ever"),
        pytest.param("stopping", EXIT, "stopped", {"CancelTimer", "ReleaseReservation"}, id="as ordered is stopped"),
        pytest.param("stopping", life.HealthPassed(), "stopping", set(), id="health that comes too late is ignored"),
        pytest.param("draining", START, "draining", {"EventRefused"}, id="no start while it drains"),
    ],
)
def test_row(status: life.Status, event: life.ReplicaEvent, to_status: str, effects: set[str]) -> None:
    after, caused = step(at(status), event)
    assert after.status == to_status
    assert {type(each).__name__ for each in caused} == effects


def test_stop_against_our_will_ends_as_failed_with_its_reason() -> None:
    state, _ = step(at("starting"), life.StartTimedOut(7.0))
    state, _ = step(state, life.ProcessExited(None, 15, ""))
    assert (state.status, state.failure) == ("failed", "the engine was not ready within 7 s")


def test_failed_start_repeats_the_engines_own_last_words() -> None:
    _, effects = step(at("starting"), life.ProcessExited(1, None, "x" * 9000 + " unknown architecture 'foo'\n"))
    (told,) = [each for each in effects if isinstance(each, life.FailWaiters)]
    assert told.words.endswith("unknown architecture 'foo'")
    assert len(told.words) < 700


events = st.sampled_from([type_ for type_ in life.EVENT_TYPES]).map(EXAMPLES.__getitem__)


@given(st.lists(events, max_size=40))
def test_law_any_order_of_events_can_still_be_brought_to_an_end(log: list[life.ReplicaEvent]) -> None:
    state = ReplicaState()
    for event in [*log, life.StopOrdered("enough"), life.ProcessExited(0, None, "")]:
        state, _ = step(state, event)
    assert state.is_final


@given(st.lists(events, max_size=40))
def test_law_requests_are_admitted_exactly_while_ready_and_resources_are_given_back_exactly_once(
    log: list[life.ReplicaEvent],
) -> None:
    state, is_open, num_released = ReplicaState(), False, 0
    for event in [*log, life.StopOrdered("enough"), life.ProcessExited(0, None, "")]:
        state, effects = step(state, event)
        for effect in effects:
            if isinstance(effect, life.OpenForRequests):
                is_open = True
            elif isinstance(effect, life.CloseForRequests):
                is_open = False
            elif isinstance(effect, life.ReleaseReservation):
                num_released += 1
                is_open = False
        assert is_open == (state.status == "ready")
    assert num_released == 1


@given(st.lists(events, max_size=40))
def test_law_every_waiting_status_has_a_timer_or_a_process_that_will_report(log: list[life.ReplicaEvent]) -> None:
    state, timers = ReplicaState(), set()
    for event in log:
        fired = {life.StartTimedOut: "start", life.DrainTimedOut: "drain", life.GraceElapsed: "grace"}.get(type(event))
        if fired is not None and fired not in timers:
            continue  # a timer that does not run cannot fire
        timers.discard(fired)
        state, effects = step(state, event)
        for effect in effects:
            if isinstance(effect, life.StartTimer):
                timers.add(effect.kind)
            elif isinstance(effect, life.CancelTimer):
                timers.discard(effect.kind)
        wanted = {"starting": {"start"}, "draining": {"drain"}, "stopping": {"grace"}}.get(state.status, set())
        assert timers == wanted


@given(st.lists(events, max_size=40))
def test_law_log_survives_json_and_replays_to_the_same_statuses(log: list[life.ReplicaEvent]) -> None:
    texts = [life.event_to_json(each) for each in log]
    read = tuple(life.event_from_json(each) for each in texts)
    assert read == tuple(log)
    assert [life.event_to_json(each) for each in read] == texts
    assert life.replay(read) == life.replay(tuple(log))


@given(st.lists(events, max_size=40))
def test_law_events_that_are_not_recorded_do_not_matter_to_a_replay(log: list[life.ReplicaEvent]) -> None:
    state, recorded = ReplicaState(), []
    for event in log:
        if life.is_recorded(state, event):
            recorded.append(event)
        state, _ = step(state, event)
    statuses = life.replay(tuple(recorded))
    assert (statuses[-1] if statuses else "cold") == state.status


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"event":"Nonsense"}', '{"event":"Drained","more":1}', "null"])
def test_foreign_text_is_no_event(text: str) -> None:
    with pytest.raises(ValueError, match="not a replica event"):
        life.event_from_json(text)
