"""What a new server does with the engines that its keeper already holds: adopt the fitting ones, end the others."""

from __future__ import annotations

import asyncio
import logging

from stoker import ids
from stoker.fleet.domain import lifecycle as life
from stoker.fleet.ports import HeldEngine
from stoker.fleet.roster import Deployment, Roster
from stoker.fleet.supervisor import ReplicaSupervisor, Surroundings
from stoker.fleet.waiting import wait_within

log = logging.getLogger(__name__)
_END_LIMIT_S = 5.0  # SIGKILL and reaping take milliseconds; a process stuck in the kernel must not stop the boot


class Adoption:
    """Adopts once at start, and again after a keeper was exchanged.

    An adopted process keeps its own name with the keeper and gets a fresh replica id: each server writes its own
    stream of events from 1, so that intervals never depend on what a killed predecessor managed to write.
    """

    def __init__(self, roster: Roster, surroundings: Surroundings) -> None:
        self._roster = roster
        self._around = surroundings
        self._awaited: dict[str, asyncio.Event] = {}

    async def adopt_all(self) -> None:
        """Look at every held engine: same launch, declared ready, healthy, and wanted → adopted; else killed.

        Raises:
            KeeperUnavailable: the keeper does not answer.
        """
        strangers = [
            each for each in await self._around.keeper.held() if each.replica_id not in self._roster.by_engine_id
        ]
        healthy = await asyncio.gather(*(self._is_fit(each) for each in strangers))
        doomed: list[HeldEngine] = []
        for engine, is_fit in zip(strangers, healthy, strict=True):
            deployment = self._deployment_of(engine)
            if deployment is None or not is_fit or self._is_full(deployment):
                doomed.append(engine)
            else:
                self._adopt(deployment, engine)
        await asyncio.gather(*(self._end(each) for each in doomed))

    def note_exit(self, engine_id: str) -> None:
        """An engine that nobody supervises ended."""
        ended = self._awaited.pop(engine_id, None)
        if ended is not None:
            ended.set()

    def _deployment_of(self, engine: HeldEngine) -> Deployment | None:
        deployment = self._roster.find(engine.notes.get("deployment", ""))
        if deployment is None or deployment.launch is None:
            return None
        return deployment if engine.notes.get("fingerprint") == deployment.launch.fingerprint else None

    def _is_full(self, deployment: Deployment) -> bool:
        return len(deployment.replicas) >= max(deployment.max_replicas, deployment.num_warm)

    async def _is_fit(self, engine: HeldEngine) -> bool:
        deployment = self._deployment_of(engine)
        if deployment is None or deployment.launch is None or not engine.is_ready:
            return False
        try:
            return await deployment.launch.engine.health(engine.endpoint) == "ready"
        except Exception as exc:
            log.warning("replica.adoption_refused", extra={"engine": engine.replica_id, "error": str(exc)})
            return False

    def _adopt(self, deployment: Deployment, engine: HeldEngine) -> None:
        assert deployment.launch is not None
        threads = engine.notes.get("threads", "1")
        replica = ReplicaSupervisor(
            self._around,
            deployment.launch,
            replica_id=ids.new_replica_id(deployment.name),
            deployment=deployment.name,
            threads=int(threads) if threads.isdigit() else 1,
            slots=deployment.settings.slots_per_replica,
            engine_id=engine.replica_id,
            is_fresh=False,
        )
        replica.endpoint, replica.pid = engine.endpoint, engine.pid
        self._roster.add(replica)
        replica.handle(
            life.Adopted(f"process {engine.pid} of an earlier server is ready", deployment.settings.engine.grace)
        )

    async def _end(self, engine: HeldEngine) -> None:
        log.info("engine.unwanted", extra={"engine": engine.replica_id, "pid": engine.pid})
        ended = self._awaited.setdefault(engine.replica_id, asyncio.Event())
        try:
            await self._around.keeper.kill(engine.replica_id)
            await wait_within(self._around.clock, _END_LIMIT_S, ended.wait())
        finally:
            self._awaited.pop(engine.replica_id, None)
