"""What the rest of Stoker asks of the ledger. Pure interface."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from typing import Protocol

from stoker.ledger.domain.reports import UsageQuery, UsageReport
from stoker.ledger.records import (
    Override,
    ReplicaInterval,
    ReplicaTransition,
    RequestIntent,
    Settlement,
    StoredKey,
)


class Recorder(Protocol):
    """The data path's side: rows are queued at once, in order, and become durable together.

    A returned future is done when the row is on stable storage and fails with `LedgerUnavailable` when it cannot be;
    a row whose future failed was *not* recorded. Cancelling the waiter does not cancel the write.
    The same `request_id`, or (`replica_id`, `sequence`), a second time is a no-op.
    """

    def begin(self, intent: RequestIntent) -> Future[None]:
        """Queue a request's intent."""
        ...

    def settle(self, settlement: Settlement) -> Future[None]:
        """Queue a request's end with its attempts."""
        ...

    def record(self, transition: ReplicaTransition) -> Future[None]:
        """Queue a replica's event, and its state interval when the status changed."""
        ...

    async def flush(self) -> None:
        """Wait until everything queued so far is durable or has failed."""
        ...


class KeyStore(Protocol):
    """Client keys. Calls are rare; each is durable when it returns. Blocking I/O happens off the loop."""

    async def add_key(self, key: StoredKey) -> None: ...
    async def revoke_key(self, key_id: str, *, at_us: int) -> bool:
        """Return False when there is no such live key."""
        ...

    async def list_keys(self) -> Sequence[StoredKey]: ...


class OverrideStore(Protocol):
    """Runtime changes over the file, newest one per deployment; history is kept."""

    async def put_override(self, override: Override) -> None: ...
    async def discard_override(self, deployment: str, *, author: str, reason: str, at_us: int) -> None: ...
    async def list_overrides(self) -> Sequence[Override]: ...
    async def declared(self) -> str | None:
        """Return the JSON text of the configuration that was last applied, None before the first."""
        ...

    async def set_declared(self, text: str) -> None: ...


class UsageReader(Protocol):
    """Reads for people and for tests; they see what is durable, and never hold up the recorder."""

    async def usage(self, query: UsageQuery) -> UsageReport: ...
    async def replica_events(self, replica_id: str | None = None) -> Sequence[ReplicaTransition]:
        """Return the event log of one replica, or of all, by replica and sequence."""
        ...

    async def replica_intervals(self, *, only_open: bool = False) -> Sequence[ReplicaInterval]:
        """Return state intervals by replica and sequence."""
        ...


class RecoveryStore(Protocol):
    """What start-up puts right before the first request of a new server."""

    async def settle_interrupted(self, *, at_us: int) -> int:
        """Settle every open intent as `interrupted`, without tokens or price; return how many there were."""
        ...

    async def last_sequences(self) -> dict[str, int]:
        """Return the last event's sequence of each replica with an open interval, for whoever adopts it."""
        ...

    async def close_orphan_intervals(self, except_replicas: Sequence[str], *, at_us: int) -> Sequence[str]:
        """Close the open intervals of all replicas but these, with an event each; return the replicas closed."""
        ...
