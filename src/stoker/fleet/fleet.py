"""The fleet as one object: the gateway's slots and directory, and the operator's control."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stoker import ids
from stoker.clock import Clock
from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest, Draining, Forbidden, NotFound, StokerError, UnknownModel
from stoker.events import DeploymentChanged, EventBus, KeeperLost
from stoker.fleet.adoption import Adoption
from stoker.fleet.conductor import Conductor
from stoker.fleet.control import FleetSnapshot, NodeBudget
from stoker.fleet.domain import lifecycle as life
from stoker.fleet.domain.admission import may_use
from stoker.fleet.leasing import Leasing
from stoker.fleet.ports import DeploymentFacts, Engine, EngineExit, Keeper, LeaseAsk, LeaseEnd, SlotLease
from stoker.fleet.preparation import ModelFiles, Preparation, check_room
from stoker.fleet.roster import Deployment, Roster
from stoker.fleet.supervisor import LaunchPlan, Surroundings
from stoker.fleet.survey import survey
from stoker.fleet.waiting import wait_within
from stoker.ledger.ports import Recorder
from stoker.models.files import ModelFile

log = logging.getLogger(__name__)
_STOP_LIMIT_S = 10.0  # beyond the grace: SIGKILL works in milliseconds, and the keeper outlives nobody


class Fleet:
    """Implements `SlotLeases`, `Directory`, `FleetControl` and `ExitListener`.

    All methods are called on one event loop; the constructor does no I/O.

    Args:
        engines: adapter by `engine.kind`.
        model_files: verified weights by model name, None where somebody else holds them.
        run_dir: for sockets; short, because a socket's path is limited to about 100 characters.
        log_dir: for the engines' output.
    """

    def __init__(
        self,
        *,
        keeper: Keeper,
        engines: Mapping[str, Engine],
        recorder: Recorder,
        clock: Clock,
        bus: EventBus,
        node: NodeBudget,
        model_files: ModelFiles,
        run_dir: Path,
        log_dir: Path,
    ) -> None:
        self._clock = clock
        self._bus = bus
        self._roster = Roster(node)
        self._around = Surroundings(keeper, recorder, clock, bus, run_dir, log_dir, ids.new_generation())
        self._conductor = Conductor(self._roster, self._around)
        self._leasing = Leasing(self._roster, self._conductor, clock, self._prepare_again)
        self._adoption = Adoption(self._roster, self._around)
        self._preparation = Preparation(engines, model_files)
        self._changing = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._is_gone = False

    # ------------------------------------------------------------------ the gateway's side

    async def acquire(self, ask: LeaseAsk) -> SlotLease:
        """See `SlotLeases.acquire`."""
        return await self._leasing.acquire(ask)

    def release(self, lease: SlotLease, end: LeaseEnd) -> None:
        """See `SlotLeases.release`."""
        self._leasing.release(lease, end)

    def find(self, name: str) -> DeploymentFacts | None:
        """See `Directory.find`."""
        deployment = self._roster.find(name)
        return None if deployment is None else _facts(deployment)

    def all(self) -> tuple[DeploymentFacts, ...]:
        """See `Directory.all`."""
        return tuple(_facts(each) for each in self._roster.live())

    # ------------------------------------------------------------------ the operator's side

    async def start(self, deployments: Mapping[str, DeploymentSettings]) -> None:
        """See `FleetControl.start`."""
        async with self._changing:
            self._around.keeper.listen(self)
            created_at_us = self._now_us()
            for name, settings in deployments.items():
                self._roster.deployments[name] = Deployment(name, settings, created_at_us)
            await asyncio.gather(*(self._prepare_or_note(each) for each in self._roster.live()))
            self._roster.place()
            await self._adoption.adopt_all()
            self._conductor.is_paused = False
            self._conductor.replan()
            for each in self._roster.live():
                self._announce(each)

    async def reconcile(
        self, deployments: Mapping[str, DeploymentSettings], models: Mapping[str, ModelFile | None] | None = None
    ) -> None:
        """See `FleetControl.reconcile`."""
        async with self._changing:
            at_hand = models or {}
            changed = {
                name: settings for name, settings in deployments.items() if self._is_changed(name, settings, at_hand)
            }
            plans = await asyncio.gather(
                *(self._preparation.prepare(name, settings, at_hand) for name, settings in changed.items())
            )
            prepared = dict(zip(changed, plans, strict=True))
            check_room(self._roster, deployments, prepared)
            self._commit(deployments, prepared)

    async def scale(self, name: str, replicas: int) -> DeploymentSettings:
        """See `FleetControl.scale`."""
        deployment = self._roster.find(name)
        if deployment is None:
            raise NotFound(f"there is no deployment {name!r}")
        settings = deployment.settings
        if settings.tier == "dedicated":
            if replicas < 1:
                raise BadRequest(f"{name} is dedicated and keeps at least 1 replica", mend="move or delete it")
            changes = {"replicas": replicas}
        else:
            if replicas < 0:
                raise BadRequest("a number of replicas is at least 0", param="replicas")
            changes = {"min_replicas": replicas, "max_replicas": max(replicas, settings.max_replicas)}
        scaled = settings.model_copy(update=changes)
        await self.reconcile({each.name: each.settings for each in self._roster.live()} | {name: scaled})
        return scaled

    def snapshot(self) -> FleetSnapshot:
        """See `FleetControl.snapshot`."""
        return survey(self._roster, self._clock.monotonic_s())

    async def drain(self, timeout_s: float) -> bool:
        """See `FleetControl.drain`."""
        self._roster.is_draining = True
        self._conductor.is_paused = True
        for each in self._roster.deployments.values():
            self._conductor.fail_queue(each, partial(Draining, "this server is going away", retry_after_s=1.0))
        await wait_within(self._clock, timeout_s, self._leasing.wait_until_released())
        return self._leasing.num_held == 0

    async def stop(self) -> None:
        """See `FleetControl.stop`."""
        self._retire_from_work()
        for each in list(self._roster.replicas.values()):
            each.handle(life.StopOrdered("the server stops"))
        await self._wait_for_ends()
        await self._end_background()

    async def detach(self) -> None:
        """See `FleetControl.detach`."""
        self._retire_from_work()
        replicas = list(self._roster.replicas.values())
        for each in replicas:
            if each.state.status == "ready":
                each.handle(life.HandedOver())
            else:
                each.handle(life.StopOrdered("the server leaves and only ready engines stay"))
        await self._wait_for_ends()
        self._is_gone = True
        await asyncio.gather(*(each.close() for each in replicas))
        await self._end_background()

    async def reconnect(self, keeper: Keeper) -> None:
        """See `FleetControl.reconnect`."""
        async with self._changing:
            self._around.keeper = keeper
            keeper.listen(self)
            await self._adoption.adopt_all()
            self._roster.keeper_problem = None
            self._conductor.replan()

    # ------------------------------------------------------------------ what the keeper reports

    def on_engine_exit(self, exited: EngineExit) -> None:
        """See `ExitListener`."""
        replica = self._roster.by_engine_id.get(exited.replica_id)
        if replica is not None:
            replica.handle(life.ProcessExited(exited.exit_code, exited.signal, exited.last_words))
        self._adoption.note_exit(exited.replica_id)

    def on_keeper_lost(self, detail: str) -> None:
        """See `ExitListener`: every process is gone with it."""
        if self._is_gone:
            return
        self._roster.keeper_problem = f"the keeper was lost: {detail}"
        log.error("keeper.lost", extra={"detail": detail})
        for each in list(self._roster.replicas.values()):
            if not each.is_external:
                each.handle(life.KeeperLost(detail))
        self._bus.publish(KeeperLost(detail))

    # ------------------------------------------------------------------ changes

    def _is_changed(self, name: str, settings: DeploymentSettings, at_hand: Mapping[str, ModelFile | None]) -> bool:
        known = self._roster.find(name)
        if known is None or known.settings != settings:
            return True
        # One that was unavailable all along must not fail the change of another; whoever asks for it tries it again.
        model = known.launch.model if known.launch is not None else None
        return settings.model in at_hand and (known.launch is None or at_hand[settings.model] != model)

    def _commit(self, deployments: Mapping[str, DeploymentSettings], prepared: Mapping[str, LaunchPlan]) -> None:
        """Change the table in one go, without a suspension point; replicas follow by the plan."""
        table: dict[str, Deployment] = {}
        for name, settings in deployments.items():
            deployment = self._roster.deployments.get(name)
            if deployment is None or deployment.is_retired:
                revived = deployment
                deployment = Deployment(name, settings, self._now_us())
                if revived is not None:
                    deployment.replicas = revived.replicas
                    deployment.refresh_opened()
            table[name] = deployment
            if name in prepared:
                deployment.adopt_launch(settings, prepared[name])
                deployment.problem = None
                self._apply_policy(deployment)
        removed = [each for name, each in self._roster.deployments.items() if name not in table]
        for deployment in removed:
            was_live, deployment.is_retired = not deployment.is_retired, True
            words = f"deployment {deployment.name} was deleted"
            self._conductor.fail_queue(deployment, partial(UnknownModel, words, param="model"))
            if deployment.replicas:
                table[deployment.name] = deployment
            if was_live:
                self._bus.publish(DeploymentChanged(deployment.name, None))
        self._roster.deployments = table
        self._roster.place()
        self._roster.refresh_current()
        self._conductor.replan()
        for name in prepared:
            self._announce(table[name])

    def _apply_policy(self, deployment: Deployment) -> None:
        """Carry a changed policy to warm replicas and waiters; no engine notices."""
        settings = deployment.settings
        for replica in deployment.replicas:
            replica.change_tier(settings.tier)
            if deployment.launch is not None and replica.launch.fingerprint == deployment.launch.fingerprint:
                replica.launch = deployment.launch
                replica.slots.resize(settings.slots_per_replica)
        for key, waiter in list(deployment.queue.items()):
            if not may_use(settings.tier, settings.tenants, waiter.ask.tenant):
                del deployment.queue[key]
                if not waiter.future.done():
                    waiter.future.set_exception(Forbidden(f"{deployment.name} is reserved for other tenants"))
        self._conductor.serve_queue(deployment)

    async def _prepare_or_note(self, deployment: Deployment) -> None:
        """Prepare a deployment; what is wrong with it is told to whoever asks for it."""
        try:
            launch = await self._preparation.prepare(deployment.name, deployment.settings, {})
        except StokerError as exc:
            deployment.problem, deployment.problem_since_s = exc, self._clock.monotonic_s()
            log.warning("deployment.unavailable", extra={"deployment": deployment.name, "error": str(exc)})
        else:
            deployment.adopt_launch(deployment.settings, launch)
            deployment.problem = None

    def _prepare_again(self, deployment: Deployment) -> None:
        deployment.problem_since_s = self._clock.monotonic_s()
        task = asyncio.create_task(self._prepare_late(deployment))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _prepare_late(self, deployment: Deployment) -> None:
        async with self._changing:
            if self._roster.find(deployment.name) is not deployment or deployment.launch is not None:
                return
            await self._prepare_or_note(deployment)
            self._roster.place()
            self._conductor.replan()
            self._announce(deployment)

    def _announce(self, deployment: Deployment) -> None:
        revision = deployment.launch.fingerprint if deployment.launch is not None else "unavailable"
        self._bus.publish(DeploymentChanged(deployment.name, revision))

    def _retire_from_work(self) -> None:
        self._roster.is_draining = True
        self._conductor.close()
        for each in self._roster.deployments.values():
            self._conductor.fail_queue(each, partial(Draining, "this server is going away", retry_after_s=1.0))

    async def _wait_for_ends(self) -> None:
        replicas = list(self._roster.replicas.values())
        limit_s = _STOP_LIMIT_S + max((each.state.grace_s for each in replicas), default=0.0)
        if not await wait_within(self._clock, limit_s, self._conductor.wait_until_empty()):
            log.error("fleet.engines_left", extra={"replicas": sorted(self._roster.replicas)})
        await asyncio.gather(*(each.close() for each in self._roster.replicas.values()))

    async def _end_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


def _facts(deployment: Deployment) -> DeploymentFacts:
    launch = deployment.launch
    declared = deployment.settings.engine.context_tokens
    trained = launch.model.context_tokens if launch is not None and launch.model is not None else None
    return DeploymentFacts(
        name=deployment.name,
        model=deployment.settings.model,
        tier=deployment.settings.tier,
        tenants=deployment.settings.tenants if deployment.settings.tier == "dedicated" else (),
        surfaces=launch.surfaces if launch is not None else frozenset(),
        context_tokens=declared if declared is not None else trained,
        created_at_us=deployment.created_at_us,
        settings=deployment.settings,
    )
