"""The operator's side without engines: a fleet that does as it is told, and `/admin` over it. Touches nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp

from stoker.admin.app import build_admin
from stoker.admin.services import FetchBoard
from stoker.config.loading import Loaded, load_text
from stoker.config.settings import DeploymentSettings
from stoker.errors import StokerError
from stoker.fleet.control import DeploymentSnapshot, FleetSnapshot, NodeSnapshot, ReplicaSnapshot
from stoker.fleet.declaration import Author
from stoker.fleet.deployments import Deployments
from stoker.models.files import ModelFile
from stoker.models.store import StoredModel
from stoker.testing.clock import VirtualClock
from stoker.testing.ledger import MemoryLedger

_MIB = 2**20


class FakeFleet:
    """The parts of `FleetControl` that the operator's side calls.

    Replicas appear at once: as many as are kept warm, ready.

    Attributes:
        refusal: what the next `reconcile` raises; cleared by it.
        calls: the deployments of every accepted `reconcile`.
        models: the models that came with the last accepted `reconcile`.
        status: by deployment, instead of the one that follows from its replicas.
        overrides_seen: what the store held, at each `reconcile`, refused ones included.
    """

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger
        self.refusal: StokerError | None = None
        self.calls: list[dict[str, DeploymentSettings]] = []
        self.models: Mapping[str, ModelFile | None] | None = None
        self.status: dict[str, str] = {}
        self.overrides_seen: list[dict[str, str]] = []
        self.deployments: dict[str, DeploymentSettings] = {}
        self.is_draining = False

    async def reconcile(
        self, deployments: Mapping[str, DeploymentSettings], models: Mapping[str, ModelFile | None] | None = None
    ) -> None:
        self.overrides_seen.append({name: each.patch for name, each in self._ledger.overrides.items()})
        refusal, self.refusal = self.refusal, None
        if refusal is not None:
            raise refusal
        self.deployments = dict(deployments)
        self.calls.append(self.deployments)
        self.models = models

    def snapshot(self) -> FleetSnapshot:
        node = NodeSnapshot(4096 * _MIB, 512 * _MIB, 0, 0, 3584 * _MIB, cores=2, gpus=0, gpus_used=0)
        deployments = tuple(self._deployment(*each) for each in self.deployments.items())
        return FleetSnapshot(node, deployments, self.is_draining, None)

    def _deployment(self, name: str, settings: DeploymentSettings) -> DeploymentSnapshot:
        warm = settings.replicas if settings.tier == "dedicated" else settings.min_replicas
        replicas = tuple(_replica(f"{name}-0000000{number}", name, settings.tier) for number in range(warm))
        return DeploymentSnapshot(
            name=name,
            model=settings.model,
            tier=settings.tier,
            status=self.status.get(name, "ready" if warm else "cold"),
            ready_replicas=warm,
            wanted_replicas=warm,
            max_replicas=max(warm, settings.max_replicas),
            ongoing=0,
            queued=0,
            eta_s=0.0 if warm else 1.2,
            memory_need_bytes=400 * _MIB,
            memory_arithmetic="weights 94 MiB + the rest 306 MiB = 400 MiB",
            reserved_bytes=400 * _MIB * warm,
            learned_start_s=1.2,
            start_samples=0,
            consecutive_failures=0,
            circuit_retry_in_s=None,
            last_error="it \x1b[31mbroke" if self.status.get(name) == "failed" else None,
            replicas=replicas,
        )


class FakeShelf:
    """A model store that holds what the test puts in `models`."""

    def __init__(self) -> None:
        self.models: list[StoredModel] = []

    def list(self) -> tuple[StoredModel, ...]:
        return tuple(self.models)


class FakeKeyring:
    """Counts how often keys were taken up."""

    def __init__(self) -> None:
        self.accepts_anyone = True
        self.num_refreshes = 0

    async def refresh(self) -> None:
        self.num_refreshes += 1


class Operator:
    """A whole operator's side over a configuration text that a test may edit.

    Attributes:
        text: the file as it is "on disk" now.
    """

    def __init__(
        self,
        text: str,
        *,
        path: str = "/etc/stoker.yaml",
        ledger: MemoryLedger | None = None,
        token: str = "token",
    ) -> None:
        self.text = text
        self.token = token
        self._path = Path(path)
        self.ledger = ledger or MemoryLedger()
        self.fleet = FakeFleet(self.ledger)
        self.clock = VirtualClock()
        self.keyring = FakeKeyring()
        self.shelf = FakeShelf()
        self.fetches = FetchBoard()
        self.log_dir = Path(tempfile.mkdtemp(prefix="stk-"))
        self.applied: list[Loaded] = []
        self.refused_keys: StokerError | None = None
        self.deployments = Deployments(
            loaded=self.load(),
            reload=self.load,
            store=self.ledger,
            fleet=self.fleet,
            clock=self.clock,
            model_files=self._model_file,
            on_applied=self._take_up,
        )
        self.fetched: list[tuple[str, str]] = []

    def load(self) -> Loaded:
        """Read the configuration as it is now."""
        return load_text(self.text, path=self._path)

    async def start(self) -> Operator:
        """Come up as a server does."""
        await self.deployments.restore()
        self.fleet.deployments = dict(self.deployments.settings.deployments)
        return self

    def app(self) -> ASGIApp:
        """Return `/admin`."""
        return build_admin(
            deployments=self.deployments,
            fleet=self.fleet,
            usage=self.ledger,
            keys=self.ledger,
            keyring=self.keyring,
            models=self.shelf,
            token=self.token,
            clock=self.clock,
            log_dir=self.log_dir,
            fetches=self.fetches,
        )

    async def _model_file(self, name: str) -> ModelFile | None:
        self.fetched.append((name, self.deployments.model_settings(name).source))
        return None

    async def _take_up(self, loaded: Loaded) -> None:
        if self.refused_keys is not None:
            refusal, self.refused_keys = self.refused_keys, None
            raise refusal
        self.applied.append(loaded)


TESTER = Author("tester", "because")


def _replica(replica_id: str, deployment: str, tier: str) -> ReplicaSnapshot:
    return ReplicaSnapshot(
        replica_id=replica_id,
        engine_id=replica_id,
        deployment=deployment,
        tier=tier,
        pid=4711,
        status="ready",
        status_for_s=12.0,
        reason="the engine is healthy",
        idle_for_s=2.0,
        ongoing=0,
        slots=1,
        memory_bytes=400 * _MIB,
        gpus=0,
        threads=1,
        eta_s=None,
        is_current=True,
    )
