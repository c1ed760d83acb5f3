"""Carries capacity plans out: starts and drains replicas, serves the queues, and wakes up when time alone matters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from stoker import ids
from stoker.errors import DeadlineExceeded, EngineFailed, NoCapacity, StokerError
from stoker.fleet.domain import lifecycle as life
from stoker.fleet.domain.admission import choose_slot, is_hopeless, predicted_wait_s
from stoker.fleet.domain.capacity import CapacityPlan, DrainReplica, StartReplica, plan
from stoker.fleet.domain.eviction import keep_alive_s
from stoker.fleet.domain.placement import threads_per_replica
from stoker.fleet.domain.restarts import STABLE_AFTER_S, Restarts, after_failure, after_ready
from stoker.fleet.ports import SlotLease
from stoker.fleet.roster import Deployment, Roster, Waiter
from stoker.fleet.supervisor import ReplicaSupervisor, Surroundings

log = logging.getLogger(__name__)
_RETRY_TICK_S = 1.0
_MAX_ROUNDS = 100  # each round of planning acts on what the last one set free; far above what one change can cause


class Conductor:
    """Implements `SupervisorOwner`.

    Args:
        grant: takes a slot for a waiter and returns its lease; set by the leasing service.
    """

    def __init__(self, roster: Roster, surroundings: Surroundings) -> None:
        self._roster = roster
        self._around = surroundings
        self._clock = surroundings.clock
        self.grant: Callable[[Deployment, Waiter, str, int], SlotLease]
        self.is_paused = True
        self._is_planning = False
        self._has_more = False
        self._timer: asyncio.Task[None] | None = None
        self._wake_at_s: float | None = None
        self._empty: asyncio.Event = asyncio.Event()
        surroundings.owner = self

    # ------------------------------------------------------------------ planning

    def replan(self) -> None:
        """Plan and carry out until nothing is left to do now; calls from within only ask for another round."""
        self._has_more = True
        if self._is_planning:
            return
        self._is_planning = True
        try:
            for _ in range(_MAX_ROUNDS):
                if not self._has_more:
                    return
                self._has_more = False
                self._round()
            log.error("capacity.never_settled")
        finally:
            self._is_planning = False

    def _round(self) -> None:
        if self.is_paused:
            return
        todo = plan(self._roster.view(), self._clock.monotonic_s())
        self.carry_out(todo.starts, todo.drains)
        self._roster.blocked = dict(todo.blocked)
        self._refuse_stranded(todo)
        if todo.check_at_s is not None:
            self.wake_at(todo.check_at_s)

    def carry_out(self, starts: tuple[StartReplica, ...], drains: tuple[DrainReplica, ...]) -> None:
        """Do what a decision said; what has changed meanwhile is left alone."""
        for drained in drains:
            replica = self._roster.replicas.get(drained.replica_id)
            if replica is not None:
                timeout_s = replica.launch.settings.drain_timeout
                replica.handle(life.DrainOrdered(drained.reason, timeout_s))
        for start in starts:
            deployment = self._roster.deployments.get(start.deployment)
            if deployment is not None and not self.is_paused:
                self._start(deployment, start.reason)

    def _start(self, deployment: Deployment, reason: str) -> None:
        launch = deployment.launch
        if launch is None or self._roster.needs_lost_keeper(deployment):
            return
        engine = deployment.settings.engine
        num_live = len(self._roster.replicas) + 1
        num_warm = sum(each.num_warm for each in self._roster.live())
        replica = ReplicaSupervisor(
            self._around,
            launch,
            replica_id=ids.new_replica_id(deployment.name),
            deployment=deployment.name,
            threads=threads_per_replica(self._roster.node.cores, max(num_live, num_warm), engine.threads),
            slots=deployment.settings.slots_per_replica,
        )
        replica.tier = deployment.settings.tier
        self._roster.add(replica)
        replica.handle(life.StartOrdered(reason, engine.start_timeout, engine.grace))

    def _refuse_stranded(self, todo: CapacityPlan) -> None:
        """Nobody stays in a queue that nothing will ever serve."""
        for name, blocked in todo.blocked.items():
            deployment = self._roster.deployments.get(name)
            if deployment is not None and blocked.eta_s is None:
                self.fail_queue(deployment, partial(NoCapacity, f"there is no room for a replica: {blocked.reason}"))
        for deployment in self._roster.live():
            if any(each.ask.excluded_replicas for each in deployment.queue.values()):
                view = deployment.view()
                serving = [each.view() for each in deployment.replicas if each.state.status in ("ready", "starting")]
                for key, waiter in list(deployment.queue.items()):
                    if is_hopeless(view, serving, waiter.ask):
                        del deployment.queue[key]
                        _fail(waiter, EngineFailed(f"every replica of {deployment.name} already failed this request"))

    # ------------------------------------------------------------------ queues

    def serve_queue(self, deployment: Deployment) -> None:
        """Grant free slots, first come first served."""
        for key, waiter in list(deployment.queue.items()):
            if waiter.future.done():
                del deployment.queue[key]
                continue
            ask = waiter.ask
            place = choose_slot(deployment.opened, ask.tenant, ask.session, ask.excluded_replicas)
            if place is not None:
                del deployment.queue[key]
                waiter.future.set_result(self.grant(deployment, waiter, *place))
            elif not any(slots.has_free for _, slots in deployment.opened):
                return

    def fail_queue(self, deployment: Deployment, error: Callable[[], StokerError]) -> None:
        """Tell everybody who waits for this deployment; each gets an exception of their own."""
        waiters = list(deployment.queue.values())
        deployment.queue.clear()
        for waiter in waiters:
            _fail(waiter, error())

    def _expire_waiters(self, now_s: float) -> None:
        for deployment in self._roster.deployments.values():
            expired = [(key, each) for key, each in deployment.queue.items() if each.expires_at_s <= now_s]
            if not expired:
                continue
            eta_s = predicted_wait_s(self._roster.view(), deployment.view(), now_s)
            if eta_s is not None:
                deployment.promise(now_s + eta_s)
            for key, waiter in expired:
                del deployment.queue[key]
                waited_s = now_s - waiter.ask.queued_at_s
                if waiter.ask.deadline_s <= now_s:
                    words = f"no slot of {deployment.name} within the request's deadline; waited {waited_s:.3g} s"
                    _fail(waiter, DeadlineExceeded(words, retry_after_s=eta_s))
                else:
                    words = f"no slot of {deployment.name} within max_wait; waited {waited_s:.3g} s"
                    _fail(waiter, NoCapacity(words, retry_after_s=eta_s))
        for deployment in self._roster.deployments.values():
            soonest_s = min((each.expires_at_s for each in deployment.queue.values()), default=None)
            if soonest_s is not None:
                self.wake_at(soonest_s)

    # ------------------------------------------------------------------ what supervisors report

    def on_moved(self, replica: ReplicaSupervisor, from_status: life.Status, took_s: float) -> None:
        deployment = self._roster.deployments[replica.deployment]
        status = replica.state.status
        now_s = self._clock.monotonic_s()
        if status == "ready" or from_status == "ready":
            deployment.refresh_opened()
        if status == "ready":
            if from_status == "starting":
                deployment.starts = deployment.starts.observe(took_s)
            deployment.restarts = after_ready(deployment.restarts)
            deployment.demand = None
            self.serve_queue(deployment)
        elif from_status == "ready" and not deployment.opened:
            deployment.turn_ended_at_s = now_s
        if replica.state.is_final:
            self._roster.remove(replica)
            if not self._roster.replicas:
                self._empty.set()
        self.replan()

    def on_failed(self, replica: ReplicaSupervisor, words: str, ready_for_s: float) -> None:
        deployment = self._roster.deployments[replica.deployment]
        before = Restarts() if ready_for_s >= STABLE_AFTER_S else deployment.restarts
        now_s = self._clock.monotonic_s()
        deployment.restarts = after_failure(before, deployment.restart_policy, words, now_s)
        log.warning("replica.failed", extra={"replica": replica.replica_id, "words": words})
        deployment.refresh_opened()
        others = [each for each in deployment.replicas if each is not replica]
        if any(each.state.status in ("ready", "starting") for each in others):
            return
        retry_s = deployment.restarts.blocked_for_s(now_s) + deployment.starts.learned_s
        self.fail_queue(
            deployment,
            lambda: EngineFailed(
                f"replica {replica.replica_id} of {deployment.name} failed: {words}",
                mend=f"see `stoker logs {deployment.name}`",
                retry_after_s=retry_s,
            ),
        )

    def on_suspicion_changed(self, replica: ReplicaSupervisor) -> None:
        deployment = self._roster.deployments[replica.deployment]
        deployment.refresh_opened()
        self.serve_queue(deployment)
        self.replan()

    def note_idle(self, deployment: Deployment) -> None:
        """A replica has nothing to do from now on; called on the data path, so it plans only when somebody waits."""
        if self._roster.blocked:
            self.replan()
        elif deployment.settings.tier == "serverless":
            self.wake_at(self._clock.monotonic_s() + keep_alive_s(deployment.settings.keep_alive))

    # ------------------------------------------------------------------ time

    def wake_at(self, at_s: float) -> None:
        """Look again at this monotonic time at the latest."""
        if self._wake_at_s is not None and self._wake_at_s <= at_s:
            return
        self._wake_at_s = at_s
        if self._timer is not None and self._timer is not asyncio.current_task():
            self._timer.cancel()
        self._timer = asyncio.create_task(self._wake(at_s))

    async def _wake(self, at_s: float) -> None:
        await self._clock.sleep(at_s - self._clock.monotonic_s())
        self._wake_at_s = None
        try:
            self._expire_waiters(self._clock.monotonic_s())
            self.replan()
        except Exception:
            log.exception("capacity.tick_failed")
            self.wake_at(self._clock.monotonic_s() + _RETRY_TICK_S)

    # ------------------------------------------------------------------ the end

    async def wait_until_empty(self) -> None:
        """Wait until every replica is stopped or failed."""
        while self._roster.replicas:
            self._empty.clear()
            await self._empty.wait()

    def close(self) -> None:
        """Plan no more and wake no more."""
        self.is_paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._wake_at_s = None, None


def _fail(waiter: Waiter, error: StokerError) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(error)
