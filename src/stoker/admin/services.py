"""What the admin interface needs, as one value that `wiring` fills. Pure interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stoker.clock import Clock
from stoker.fleet.control import FleetSnapshot
from stoker.fleet.deployments import Deployments
from stoker.ledger.ports import KeyStore, UsageReader
from stoker.models.fetching import ProgressReport
from stoker.models.store import StoredModel


class FleetView(Protocol):
    """The part of `FleetControl` that is shown."""

    def snapshot(self) -> FleetSnapshot: ...


class ModelShelf(Protocol):
    """The part of `ModelStore` that is shown."""

    def list(self) -> tuple[StoredModel, ...]:
        """Return what is here; blocking."""
        ...


class KeyringView(Protocol):
    """The part of the gateway's keyring that follows the key store."""

    @property
    def accepts_anyone(self) -> bool: ...
    async def refresh(self) -> None: ...


class FetchBoard:
    """The latest report of each model's download; `note` is a `models.fetching.Progress`."""

    def __init__(self) -> None:
        self._reports: dict[str, ProgressReport] = {}

    def note(self, report: ProgressReport) -> None:
        """Keep a report. May be called from any thread."""
        self._reports[report.name] = report

    def clear(self, name: str) -> None:
        """Forget a model whose download ended, well or not."""
        self._reports.pop(name, None)

    def all(self) -> dict[str, ProgressReport]:
        """Return the reports by model."""
        return dict(self._reports)


@dataclass(frozen=True, slots=True)
class AdminServices:
    """Everything that `/admin` speaks to.

    Attributes:
        keyring: takes up new and revoked keys before the answer leaves.
        log_dir: one `<engine id>.log` for each engine.
        fetches: the downloads under way.
    """

    deployments: Deployments
    fleet: FleetView
    usage: UsageReader
    keys: KeyStore
    keyring: KeyringView
    models: ModelShelf
    clock: Clock
    log_dir: Path
    fetches: FetchBoard = field(default_factory=FetchBoard)
