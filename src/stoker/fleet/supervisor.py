"""One replica's only writer: applies events to its table and carries the effects out through keeper and engine."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from stoker.clock import Clock
from stoker.config.settings import DeploymentSettings
from stoker.errors import KeeperUnavailable, StokerError
from stoker.events import EventBus, ReplicaMoved
from stoker.fleet.domain import lifecycle as life
from stoker.fleet.domain.placement import Resources
from stoker.fleet.domain.slots import SlotTable
from stoker.fleet.domain.views import ReplicaView
from stoker.fleet.ports import Endpoint, Engine, Health, Keeper, LaunchRequest, Surface
from stoker.ledger.ports import Recorder
from stoker.ledger.records import ReplicaTransition
from stoker.models.files import ModelFile

log = logging.getLogger(__name__)

# Health is asked so often that what is lost by asking late stays below 3 % of the start, whatever its length.
_POLL_MIN_S = 0.002
_POLL_MAX_S = 0.25
_POLL_RATIO = 0.03
# A suspect engine is given these pauses between questions: an exit report, with its words, comes sooner than that.
_SUSPECT_PAUSES_S = (0.05, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What a replica is launched from; a deployment has one at a time.

    Attributes:
        fingerprint: equal exactly when a running engine need not be replaced.
        need: memory and GPUs of one replica, `need_arithmetic` how they come about.
    """

    settings: DeploymentSettings
    engine: Engine
    model: ModelFile | None
    need: Resources
    need_arithmetic: str
    surfaces: frozenset[Surface]
    fingerprint: str


class SupervisorOwner(Protocol):
    """Whom a supervisor tells; all return at once."""

    def on_moved(self, replica: ReplicaSupervisor, from_status: life.Status, took_s: float) -> None: ...
    def on_failed(self, replica: ReplicaSupervisor, words: str, ready_for_s: float) -> None: ...
    def on_suspicion_changed(self, replica: ReplicaSupervisor) -> None: ...


@dataclass(slots=True)
class Surroundings:
    """What all supervisors of one fleet share; `keeper` may be exchanged after a loss."""

    keeper: Keeper
    recorder: Recorder
    clock: Clock
    bus: EventBus
    run_dir: Path
    log_dir: Path
    generation: str
    owner: SupervisorOwner = field(init=False)


class ReplicaSupervisor:
    """A replica and its process.

    Args:
        engine_id: the keeper's name for the process; differs from `replica_id` after an adoption, because each
            server writes its own stream of events.
        threads: that the engine is told to use.
        slots: requests that it may hold at once.
        is_fresh: False when the process is a predecessor's and its slots may hold anybody's content.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        launch: LaunchPlan,
        *,
        replica_id: str,
        deployment: str,
        threads: int,
        slots: int,
        engine_id: str | None = None,
        is_fresh: bool = True,
    ) -> None:
        self._around = surroundings
        self.launch = launch
        self.replica_id = replica_id
        self.engine_id = engine_id or replica_id
        self.deployment = deployment
        self.tier = launch.settings.tier
        self.threads = threads
        self.slots = SlotTable(slots, is_fresh=is_fresh)
        self.state = life.ReplicaState()
        self.since_s = surroundings.clock.monotonic_s()
        self.reason = "known"
        self.endpoint: Endpoint | None = None
        self.pid: int | None = None
        self.idle_since_s: float | None = None
        self.start_began_s: float | None = None
        self.ready_since_s: float | None = None
        self.is_suspect = False
        self.is_current = True
        self.is_external = False
        self._sequence = 0
        self._inbox: deque[life.ReplicaEvent] = deque()
        self._is_handling = False
        self._timers: dict[life.TimerKind, asyncio.Task[None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._errands: asyncio.Queue[Callable[[], Awaitable[None]] | None] = asyncio.Queue()
        self._errand_task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ events

    def handle(self, event: life.ReplicaEvent) -> None:
        """Apply an event and carry out its effects; events raised meanwhile are applied after it, in order."""
        self._inbox.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._inbox:
                self._apply(self._inbox.popleft())
        finally:
            self._is_handling = False

    def suspect(self) -> None:
        """Grant nothing on it until its health has been asked."""
        if self.state.status != "ready" or self.is_suspect:
            return
        self.is_suspect = True
        self._ask(self._ask_after_suspicion())
        self._around.owner.on_suspicion_changed(self)

    def change_tier(self, tier: str) -> None:
        """Note the move in the log; the process does not notice."""
        if tier != self.tier:
            self.tier = tier  # type: ignore[assignment]  # a tier of the settings
            self.handle(life.TierChanged(tier))

    def view(self) -> ReplicaView:
        """Return what decisions look at."""
        return ReplicaView(
            self.replica_id,
            self.deployment,
            self.state.status,
            self.since_s,
            self.idle_since_s if self.state.status == "ready" else None,
            self.slots,
            Resources() if self.state.is_final else self.launch.need,
            self.is_suspect,
            self.is_current,
        )

    async def close(self) -> None:
        """Wait for what was asked of the keeper, then end every task of this supervisor; the process is left alone."""
        self._stop_asking()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._errand_task is not None:
            self._errands.put_nowait(None)
            await asyncio.wait([self._errand_task])

    def _apply(self, event: life.ReplicaEvent) -> None:
        before = self.state
        state, effects = life.step(before, event)
        now_s = self._around.clock.monotonic_s()
        took_s = now_s - self.since_s
        has_moved = state.status != before.status
        if life.is_recorded(before, event):
            self._record(event, before, state)
        self.state = state
        if has_moved:
            self.since_s, self.reason = now_s, life.reason_for(before, event)
            if before.status == "starting":
                self._stop_asking()
            if state.status == "ready":
                self.ready_since_s = self.idle_since_s = now_s
            elif state.status == "starting":
                self.start_began_s = now_s
            log.info(
                "replica.moved",
                extra={"replica": self.replica_id, "to": state.status, "reason": self.reason, "took_s": took_s},
            )
        for effect in effects:
            self._carry_out(effect, took_s)
        if has_moved:
            self._around.bus.publish(
                ReplicaMoved(self.deployment, self.replica_id, before.status, state.status, took_s, self.reason)
            )
            self._around.owner.on_moved(self, before.status, took_s)
            if state.status == "draining" and self.slots.ongoing == 0:
                self.handle(life.Drained())
            if state.is_final:
                self._errands.put_nowait(None)

    def _record(self, event: life.ReplicaEvent, before: life.ReplicaState, after: life.ReplicaState) -> None:
        self._sequence += 1
        holds = not after.is_final and after.status != "cold"
        transition = ReplicaTransition(
            replica_id=self.replica_id,
            sequence=self._sequence,
            at_us=int(self._around.clock.now().timestamp() * 1_000_000),
            deployment=self.deployment,
            tier=self.tier,
            event=life.event_to_json(event),
            from_status=before.status,
            to_status=after.status,
            is_final=after.is_final,
            reason=life.reason_for(before, event),
            memory_bytes=self.launch.need.memory_bytes if holds else 0,
            cores=float(self.threads) if holds else 0.0,
            gpus=self.launch.need.gpus if holds else 0,
        )
        self._around.recorder.record(transition).add_done_callback(_log_unrecorded)

    # ------------------------------------------------------------------ effects

    def _carry_out(self, effect: life.Effect, took_s: float) -> None:
        match effect:
            case life.LaunchProcess():
                self._errand(self._launch)
            case life.AskHealth():
                self._ask(self._ask_until_ready())
            case life.OpenForRequests():
                self._mark_ready(is_ready=True)
            case life.CloseForRequests():
                self.is_suspect = False
                self._stop_asking()
                self._mark_ready(is_ready=False)
            case life.Terminate():
                self._end(lambda: self._around.keeper.terminate(self.engine_id))
            case life.Kill():
                self._end(lambda: self._around.keeper.kill(self.engine_id))
            case life.StartTimer(kind, after_s):
                self._cancel_timer(kind)
                self._timers[kind] = asyncio.create_task(self._run_timer(kind, after_s))
            case life.CancelTimer(kind):
                self._cancel_timer(kind)
            case life.FailWaiters(words):
                ready_for_s = took_s if self.ready_since_s is not None else 0.0
                self._around.owner.on_failed(self, words, ready_for_s)
            case life.ReleaseReservation():
                pass  # `view` gives it back with the final status
            case life.EventRefused(reason):
                log.warning("replica.event_refused", extra={"replica": self.replica_id, "reason": reason})

    async def _launch(self) -> None:
        if self.state.status != "starting":
            # The order was taken back before the keeper heard of it.
            self.handle(life.ProcessExited(0, None, ""))
            return
        request = LaunchRequest(
            replica_id=self.engine_id,
            deployment=self.deployment,
            settings=self.launch.settings,
            model=self.launch.model,
            run_dir=self._around.run_dir,
            log_dir=self._around.log_dir,
            threads=self.threads,
        )
        try:
            planned = self.launch.engine.plan_launch(request)
            if isinstance(planned, Endpoint):
                self.endpoint, self.is_external = planned, True
            else:
                self.endpoint = planned.endpoint
                self.pid = await self._around.keeper.launch(replace(planned, notes={**planned.notes, **self._notes()}))
        except KeeperUnavailable as exc:
            # Nobody knows whether it runs: make sure that it does not.
            self._errand(lambda: self._around.keeper.kill(self.engine_id))
            self.handle(life.LaunchFailed(str(exc)))
        except StokerError as exc:
            self.handle(life.LaunchFailed(str(exc)))
        except Exception as exc:
            log.exception("replica.launch_failed", extra={"replica": self.replica_id})
            self.handle(life.LaunchFailed(f"{type(exc).__name__}: {exc}"))
        else:
            self.handle(life.ProcessStarted(self.pid))
            self._end_if_external_and_stopping()

    def _end_if_external_and_stopping(self) -> None:
        # Stopped before anybody knew that there is no process whose exit could be reported.
        if self.is_external and self.state.status == "stopping":
            self.handle(life.ProcessExited(0, None, ""))

    def _notes(self) -> dict[str, str]:
        return {
            "deployment": self.deployment,
            "fingerprint": self.launch.fingerprint,
            "threads": str(self.threads),
            "generation": self._around.generation,
        }

    def _mark_ready(self, *, is_ready: bool) -> None:
        if not self.is_external:
            self._errand(lambda: self._around.keeper.mark_ready(self.engine_id, is_ready=is_ready))

    def _end(self, errand: Callable[[], Awaitable[None]]) -> None:
        if self.is_external:
            self.handle(life.ProcessExited(0, None, ""))
        else:
            self._errand(errand)

    def _errand(self, errand: Callable[[], Awaitable[None]]) -> None:
        """Ask the keeper, one thing after another: a stop must never overtake its start."""
        self._errands.put_nowait(errand)
        if self._errand_task is None:
            self._errand_task = asyncio.create_task(self._run_errands())

    async def _run_errands(self) -> None:
        while (errand := await self._errands.get()) is not None or not self._errands.empty():
            if errand is None:
                continue
            try:
                await errand()
            except StokerError as exc:
                # A lost keeper is reported by itself; a terminate that failed is repeated as a kill after the grace.
                log.warning("replica.errand_failed", extra={"replica": self.replica_id, "error": str(exc)})
            except Exception:
                log.exception("replica.errand_failed", extra={"replica": self.replica_id})

    # ------------------------------------------------------------------ health and timers

    def _ask(self, question: Awaitable[None]) -> None:
        self._stop_asking()
        self._asking = asyncio.ensure_future(question)

    def _stop_asking(self) -> None:
        # Never the running task itself: it is at its end when it raises an event, and there is no await left in it.
        if self._asking is not None and self._asking is not asyncio.current_task():
            self._asking.cancel()
        self._asking = None

    async def _health(self) -> Health:
        assert self.endpoint is not None
        try:
            return await self.launch.engine.health(self.endpoint)
        except Exception as exc:
            log.debug("replica.health_unknown", extra={"replica": self.replica_id, "error": str(exc)})
            return "starting"

    async def _ask_until_ready(self) -> None:
        clock = self._around.clock
        began_s = clock.monotonic_s()
        while await self._health() != "ready":
            elapsed_s = clock.monotonic_s() - began_s
            await clock.sleep(min(_POLL_MAX_S, max(_POLL_MIN_S, elapsed_s * _POLL_RATIO)))
        self.handle(life.HealthPassed())

    async def _ask_after_suspicion(self) -> None:
        for pause_s in _SUSPECT_PAUSES_S:
            if await self._health() == "ready":
                self.is_suspect = False
                self._around.owner.on_suspicion_changed(self)
                return
            await self._around.clock.sleep(pause_s)
        self.handle(life.HealthLost(f"no answer to {len(_SUSPECT_PAUSES_S)} questions after a broken request"))

    def _cancel_timer(self, kind: life.TimerKind) -> None:
        timer = self._timers.pop(kind, None)
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()

    async def _run_timer(self, kind: life.TimerKind, after_s: float) -> None:
        await self._around.clock.sleep(after_s)
        self._timers.pop(kind, None)
        match kind:
            case "start":
                self.handle(life.StartTimedOut(after_s))
            case "drain":
                self.handle(life.DrainTimedOut(self.slots.ongoing))
            case "grace":
                self.handle(life.GraceElapsed())


def _log_unrecorded(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error("replica.event_unrecorded", extra={"error": str(error)})
