"""A fleet and a deployment table in memory for whoever tests the gateway. Touches nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from stoker.config.settings import DeploymentSettings
from stoker.errors import DeadlineExceeded, Forbidden, StokerError, UnknownModel
from stoker.fleet.ports import (
    DeploymentFacts,
    Endpoint,
    Health,
    LaunchRequest,
    LaunchSpec,
    LeaseAsk,
    LeaseEnd,
    MemoryNeed,
    SlotLease,
    SlotUse,
    Surface,
)
from stoker.models.files import ModelFile

CHAT_SURFACES: frozenset[Surface] = frozenset({"chat.completions", "completions"})
_PATHS: dict[Surface, str] = {"infill": "/infill", "tokenize": "/tokenize"}
# Fields by which a client could reach into an engine; stands for an adapter's own list.
CONTROL_FIELDS = ("id_slot", "cache_salt", "priority")


class PlainEngine:
    """An adapter for a server that speaks the OpenAI protocol; notes the bodies it prepared."""

    kind = "plain"

    def __init__(self) -> None:
        self.prepared: list[dict[str, Any]] = []

    def surfaces(self, settings: DeploymentSettings, model: ModelFile | None) -> frozenset[Surface]:
        return CHAT_SURFACES

    def memory_need(self, settings: DeploymentSettings, model: ModelFile | None) -> MemoryNeed:
        return MemoryNeed(0, "nothing")

    def plan_launch(self, request: LaunchRequest) -> LaunchSpec | Endpoint:
        return Endpoint(socket_path=str(request.run_dir / "engine.sock"))

    async def health(self, endpoint: Endpoint) -> Health:
        return "ready"

    def prepare(self, surface: Surface, body: dict[str, Any], use: SlotUse) -> None:
        for name in CONTROL_FIELDS:
            body.pop(name, None)
        self.prepared.append(body.copy())

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,
        use: SlotUse,
        surface: Surface,
        body: dict[str, Any],
        last_event: bytes,
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        return None

    def path(self, surface: Surface) -> str:
        return _PATHS.get(surface) or "/v1/" + surface.replace(".", "/")


class CountingEngine(PlainEngine):
    """A plain engine that can tell what a cancelled request came to."""

    def __init__(self, counted: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.counted = counted
        self.asked_with: list[bytes] = []

    async def usage_after_cancel(
        self,
        endpoint: Endpoint,
        use: SlotUse,
        surface: Surface,
        body: dict[str, Any],
        last_event: bytes,
        close: Callable[[], None],
    ) -> tuple[int, int, int] | None:
        self.asked_with.append(last_event)
        return self.counted


class StaticDirectory:
    """A `Directory` over given facts."""

    def __init__(self, facts: Iterable[DeploymentFacts] = ()) -> None:
        self.facts = {one.name: one for one in facts}

    def find(self, name: str) -> DeploymentFacts | None:
        return self.facts.get(name)

    def all(self) -> tuple[DeploymentFacts, ...]:
        return tuple(self.facts.values())


def deployment_facts(
    name: str,
    *,
    tier: str = "serverless",
    tenants: tuple[str, ...] = (),
    surfaces: frozenset[Surface] = CHAT_SURFACES,
    context_tokens: int | None = 2048,
    **settings: Any,
) -> DeploymentFacts:
    """Return the facts of a deployment; `settings` are fields of `DeploymentSettings`."""
    return DeploymentFacts(
        name=name,
        model="model",
        tier=tier,
        tenants=tenants,
        surfaces=surfaces,
        context_tokens=context_tokens,
        created_at_us=1_767_225_600_000_000,
        settings=DeploymentSettings.model_validate({"model": "model", "tier": tier, "tenants": tenants, **settings}),
    )


@dataclass
class FakeReplica:
    """One replica that the fake fleet hands out slots on."""

    replica_id: str
    endpoint: Endpoint
    engine: PlainEngine = field(default_factory=PlainEngine)
    tier: str = "serverless"
    num_slots: int = 1
    num_held: int = 0


class FakeLeases:
    """A `SlotLeases` over fixed replicas, first free one first; waits in order of arrival where none is free.

    Attributes:
        asks: every ask, in order.
        ends: every end of a lease by replica, in order.
        refusal: raised by every `acquire` while set.
        cold_start_s: claimed by every lease.
        is_closed: while true nothing is granted and asks wait, as for a replica that loads.
    """

    def __init__(
        self, replicas: dict[str, list[FakeReplica]], tenants: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self._replicas = replicas
        self._tenants = tenants or {}
        self._ids = itertools.count(1)
        self._held: dict[int, FakeReplica] = {}
        self._waiting: list[tuple[LeaseAsk, asyncio.Future[SlotLease]]] = []
        self.asks: list[LeaseAsk] = []
        self.ends: list[tuple[str, LeaseEnd]] = []
        self.refusal: StokerError | None = None
        self.cold_start_s = 0.0
        self.is_closed = False

    @property
    def num_held(self) -> int:
        """Slots that are leased now."""
        return len(self._held)

    @property
    def num_waiting(self) -> int:
        """Asks in the queue."""
        return len(self._waiting)

    async def acquire(self, ask: LeaseAsk) -> SlotLease:
        self.asks.append(ask)
        if self.refusal is not None:
            raise self.refusal
        if ask.deployment not in self._replicas:
            raise UnknownModel(f"no deployment {ask.deployment!r}")
        tenants = self._tenants.get(ask.deployment, ())
        if tenants and ask.tenant not in tenants:
            raise Forbidden(f"{ask.deployment!r} is reserved")
        if ask.deadline_s <= 0:
            raise DeadlineExceeded("the deadline passed")
        if (lease := self._grant(ask)) is not None:
            return lease
        future: asyncio.Future[SlotLease] = asyncio.get_running_loop().create_future()
        entry = (ask, future)
        self._waiting.append(entry)
        try:
            return await future
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result(), LeaseEnd(0.0, None, None))
            raise

    def release(self, lease: SlotLease, end: LeaseEnd) -> None:
        replica = self._held.pop(lease.lease_id, None)
        if replica is None:
            return
        replica.num_held -= 1
        self.ends.append((lease.replica_id, end))
        self.wake()

    def wake(self) -> None:
        """Grant what can be granted now, in order."""
        for entry in list(self._waiting):
            ask, future = entry
            if (lease := self._grant(ask)) is not None:
                self._waiting.remove(entry)
                future.set_result(lease)

    def _grant(self, ask: LeaseAsk) -> SlotLease | None:
        if self.is_closed:
            return None
        for replica in self._replicas[ask.deployment]:
            if replica.num_held < replica.num_slots and replica.replica_id not in ask.excluded_replicas:
                replica.num_held += 1
                lease_id = next(self._ids)
                self._held[lease_id] = replica
                return SlotLease(
                    lease_id=lease_id,
                    deployment=ask.deployment,
                    tier=replica.tier,
                    replica_id=replica.replica_id,
                    endpoint=replica.endpoint,
                    engine=replica.engine,
                    use=SlotUse(slot_index=replica.num_held - 1, may_reuse_prefix=True, tenant_salt=ask.tenant),
                    queue_s=self.cold_start_s,
                    cold_start_s=self.cold_start_s,
                )
        return None
