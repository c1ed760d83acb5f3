"""Slots for requests: a fast way when one is free, the domain's decision when none is."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from functools import lru_cache

from stoker.clock import Clock
from stoker.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Forbidden,
    InsufficientMemory,
    KeeperUnavailable,
    ModelUnavailable,
    NoCapacity,
    StokerError,
    UnknownModel,
)
from stoker.fleet.conductor import Conductor
from stoker.fleet.domain import lifecycle as life
from stoker.fleet.domain.admission import Granted, RefusalCode, Refused, Wait, choose_slot, decide, may_use
from stoker.fleet.domain.restarts import after_success
from stoker.fleet.domain.views import Ask
from stoker.fleet.ports import LeaseAsk, LeaseEnd, SlotLease, SlotUse
from stoker.fleet.roster import Deployment, Roster, Waiter
from stoker.fleet.supervisor import ReplicaSupervisor

_MODEL_RETRY_S = 30.0  # a model that could not be had is asked for again at most this often

_ERRORS: dict[RefusalCode, type[StokerError]] = {
    "forbidden": Forbidden,
    "capacity_exhausted": NoCapacity,
    "insufficient_memory": InsufficientMemory,
    "deadline_exceeded": DeadlineExceeded,
    "engine_failed": EngineFailed,
}


class Leasing:
    """Implements `SlotLeases`.

    Args:
        prepare_again: asks once more, in the background, for a model that could not be had.
    """

    def __init__(
        self, roster: Roster, conductor: Conductor, clock: Clock, prepare_again: Callable[[Deployment], None]
    ) -> None:
        self._roster = roster
        self._conductor = conductor
        self._clock = clock
        self._prepare_again = prepare_again
        self._next_lease_id = itertools.count(1).__next__
        self._next_waiter = itertools.count(1).__next__
        self._held: dict[int, tuple[ReplicaSupervisor, int]] = {}
        self._all_released = asyncio.Event()
        conductor.grant = self._grant_waiter

    @property
    def num_held(self) -> int:
        return len(self._held)

    async def acquire(self, ask: LeaseAsk) -> SlotLease:
        """See `SlotLeases.acquire`."""
        deployment = self._roster.deployments.get(ask.deployment)
        if deployment is None or deployment.is_retired:
            raise UnknownModel(f"there is no deployment {ask.deployment!r}", param="model")
        settings = deployment.settings
        if (
            not deployment.queue
            and not self._roster.is_draining
            and may_use(settings.tier, settings.tenants, ask.tenant)
            and (place := choose_slot(deployment.opened, ask.tenant, ask.session, ask.excluded_replicas)) is not None
        ):
            return self._grant(deployment, ask.tenant, ask.session, place, queue_s=0.0, queued_at_s=None)
        return await self._acquire_by_decision(deployment, ask)

    def release(self, lease: SlotLease, end: LeaseEnd) -> None:
        """See `SlotLeases.release`."""
        held = self._held.pop(lease.lease_id, None)
        if held is None:
            return
        replica, slot = held
        slots = replica.slots
        slots.give_back(slot)
        deployment = self._roster.deployments.get(replica.deployment)
        status = replica.state.status
        if slots.ongoing == 0:
            if status == "ready":
                replica.idle_since_s = self._clock.monotonic_s()
            elif status == "draining":
                replica.handle(life.Drained())
        if deployment is not None:
            if end.is_replica_suspect:
                replica.suspect()
            else:
                self._learn(deployment, end)
            if deployment.queue:
                self._conductor.serve_queue(deployment)
            if slots.ongoing == 0 and status == "ready":
                self._conductor.note_idle(deployment)
        if not self._held:
            self._all_released.set()

    async def wait_until_released(self) -> None:
        """Wait until no request holds a slot."""
        while self._held:
            self._all_released.clear()
            await self._all_released.wait()

    # ------------------------------------------------------------------ granting

    def _grant(
        self,
        deployment: Deployment,
        tenant: str,
        session: str | None,
        place: tuple[str, int],
        *,
        queue_s: float,
        queued_at_s: float | None,
    ) -> SlotLease:
        replica = self._roster.replicas[place[0]]
        slot = place[1]
        may_reuse = replica.slots.take(slot, tenant, session)
        replica.idle_since_s = None
        lease_id = self._next_lease_id()
        self._held[lease_id] = (replica, slot)
        assert replica.endpoint is not None
        return SlotLease(
            lease_id,
            deployment.name,
            deployment.settings.tier,
            replica.replica_id,
            replica.endpoint,
            replica.launch.engine,
            SlotUse(slot % replica.launch.settings.engine.slots, may_reuse, tenant_salt(tenant)),
            queue_s,
            0.0 if queued_at_s is None else _cold_start_s(replica, queued_at_s),
        )

    def _grant_waiter(self, deployment: Deployment, waiter: Waiter, replica_id: str, slot: int) -> SlotLease:
        ask = waiter.ask
        queue_s = self._clock.monotonic_s() - ask.queued_at_s
        place = (replica_id, slot)
        return self._grant(deployment, ask.tenant, ask.session, place, queue_s=queue_s, queued_at_s=ask.queued_at_s)

    def _learn(self, deployment: Deployment, end: LeaseEnd) -> None:
        if end.input_tokens is None and end.output_tokens is None:
            return  # it left or failed before the engine had served it
        tokens = (end.input_tokens or 0) + (end.output_tokens or 0)
        deployment.service = deployment.service.observe(end.held_s, tokens)
        if deployment.restarts.num_failures:
            deployment.restarts = after_success(deployment.restarts)

    # ------------------------------------------------------------------ deciding and waiting

    async def _acquire_by_decision(self, deployment: Deployment, lease_ask: LeaseAsk) -> SlotLease:
        if self._roster.is_draining:
            raise Draining("this server is going away", retry_after_s=1.0)
        now_s = self._clock.monotonic_s()
        if deployment.launch is None:
            raise self._unavailable(deployment, now_s)
        if self._roster.needs_lost_keeper(deployment) and not deployment.opened:
            raise KeeperUnavailable(self._roster.keeper_problem or "")
        ask = Ask(
            lease_ask.request_id,
            lease_ask.deployment,
            lease_ask.tenant,
            lease_ask.est_tokens,
            lease_ask.deadline_s,
            now_s,
            lease_ask.session,
            lease_ask.excluded_replicas,
        )
        decision = decide(self._roster.view(), ask, now_s)
        if isinstance(decision, Granted):
            place = (decision.replica_id, decision.slot)
            return self._grant(deployment, ask.tenant, ask.session, place, queue_s=0.0, queued_at_s=None)
        if isinstance(decision, Refused):
            deployment.demand = decision.demand or deployment.demand
            if decision.demand is not None and decision.retry_after_s is not None:
                deployment.promise(now_s + decision.retry_after_s)
            self._conductor.carry_out(decision.wake, decision.evict)
            self._conductor.replan()
            raise _refusal(deployment, decision)
        return await self._wait(deployment, ask, decision)

    async def _wait(self, deployment: Deployment, ask: Ask, decided: Wait) -> SlotLease:
        future: asyncio.Future[SlotLease] = asyncio.get_running_loop().create_future()
        expires_at_s = min(ask.deadline_s, ask.queued_at_s + deployment.settings.max_wait)
        key = self._next_waiter()
        deployment.queue[key] = Waiter(ask, expires_at_s, future)
        self._conductor.wake_at(expires_at_s)
        self._conductor.carry_out(decided.wake, decided.evict)
        self._conductor.replan()
        try:
            return await future
        except asyncio.CancelledError:
            deployment.queue.pop(key, None)
            if future.done() and not future.cancelled() and future.exception() is None:
                # Granted in the same turn of the loop in which the caller left: the slot must not leak.
                self.release(future.result(), LeaseEnd(0.0, None, None))
            raise

    def _unavailable(self, deployment: Deployment, now_s: float) -> StokerError:
        problem = deployment.problem
        message = problem.message if problem is not None else f"{deployment.name} is not prepared yet"
        retry_s = max(0.0, deployment.problem_since_s + _MODEL_RETRY_S - now_s)
        if retry_s == 0:
            self._prepare_again(deployment)
        kind = type(problem) if isinstance(problem, ModelUnavailable | InsufficientMemory) else ModelUnavailable
        return kind(message, mend=problem.mend if problem is not None else None, retry_after_s=retry_s)


def _refusal(deployment: Deployment, refused: Refused) -> StokerError:
    message = f"{deployment.name}: {refused.reason}"
    if refused.arithmetic:
        message = f"{message}: {refused.arithmetic}"
    return _ERRORS[refused.code](message, retry_after_s=refused.retry_after_s)


def _cold_start_s(replica: ReplicaSupervisor, queued_at_s: float) -> float:
    """Return the seconds of a wait that overlap the start of the replica that ended it."""
    if replica.start_began_s is None or replica.ready_since_s is None:
        return 0.0
    return max(0.0, replica.ready_since_s - max(queued_at_s, replica.start_began_s))


@lru_cache(maxsize=4096)
def tenant_salt(tenant: str) -> str:
    """Return what keys an engine-wide prefix cache by tenant: stable, and telling nothing of the name."""
    return hashlib.sha256(b"stoker prefix cache\0" + tenant.encode()).hexdigest()[:32]
