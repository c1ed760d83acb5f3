"""The ledger on SQLite: durable rows by group commit, keys, overrides, reports. Touches one file and its WAL."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from stoker.errors import Conflict, LedgerUnavailable
from stoker.ledger.domain.reports import UsageQuery, UsageReport
from stoker.ledger.records import (
    Override,
    ReplicaInterval,
    ReplicaTransition,
    RequestIntent,
    Settlement,
    StoredKey,
)
from stoker.ledger.recovery import close_orphan_intervals, last_sequences, settle_interrupted
from stoker.ledger.stores.batch import select_intervals
from stoker.ledger.stores.connection import open_reader, unavailable
from stoker.ledger.stores.statements import INSERT_EVENT
from stoker.ledger.stores.writer import GroupCommitWriter
from stoker.ledger.usage import read_usage

MAX_WAITING_ROWS = 20_000
"""Rows queued beyond which a request is refused: some 0.5 s of writing at full speed, 10 MB of memory."""

_T = TypeVar("_T")


class SqliteLedger:
    """`Recorder`, `KeyStore`, `OverrideStore`, `UsageReader` and `RecoveryStore` on one SQLite file.

    Made by `open`; belongs to the event loop that opened it, and its methods are called from there only. A batch that
    cannot be committed fails as a whole; the file is then opened anew and verified before the next batch is tried.
    """

    def __init__(self, path: Path, *, max_waiting_rows: int = MAX_WAITING_ROWS) -> None:
        self._path = path
        self._max_waiting_rows = max_waiting_rows
        self._writer = GroupCommitWriter(path, asyncio.get_running_loop())

    @classmethod
    async def open(cls, path: Path, *, max_waiting_rows: int = MAX_WAITING_ROWS) -> Self:
        """Open the file, creating or migrating it first.

        Args:
            max_waiting_rows: rows that may be queued before `begin` fails at once.

        Raises:
            StateDirUnusable: the file cannot be opened, created or migrated, or a newer Stoker wrote it.
        """
        ledger = cls(path, max_waiting_rows=max_waiting_rows)
        await ledger._writer.start()
        return ledger

    async def close(self) -> None:
        """Write everything queued, then close the file; later rows fail. A second time does nothing."""
        await self._writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -------------------------------------------------------------------------------------------- recorder

    def begin(self, intent: RequestIntent) -> Future[None]:
        """Queue an intent; fails at once when too many rows wait, so that back-pressure reaches the client."""
        if self._writer.num_waiting >= self._max_waiting_rows:
            future: Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(
                LedgerUnavailable(
                    f"{self._writer.num_waiting} rows wait to be recorded, which is the limit",
                    mend="the disk is slower than the traffic; try again shortly",
                    retry_after_s=1.0,
                )
            )
            future.exception()
            return future
        return self._writer.put(intent)

    def settle(self, settlement: Settlement) -> Future[None]:
        """Queue a settlement; never refused for want of room, because its request was let in."""
        return self._writer.put(settlement)

    def record(self, transition: ReplicaTransition) -> Future[None]:
        """Queue a replica's event."""
        return self._writer.put(transition)

    async def flush(self) -> None:
        """Wait until everything queued so far is durable or has failed."""
        await self._writer.put_barrier()

    # -------------------------------------------------------------------------------------------- keys

    async def add_key(self, key: StoredKey) -> None:
        """Store a key. Raises `Conflict` when its id or its secret is stored already."""

        def insert(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(
                    "INSERT INTO api_keys (key_id, name, tenant, sha256, hint, deployments, created_at_us,"
                    " revoked_at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        key.key_id, key.name, key.tenant, key.sha256, key.hint, json.dumps(key.deployments),
                        key.created_at_us, key.revoked_at_us,
                    ),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise Conflict(f"key {key.key_id} cannot be added: {error}") from error

        await self._transact(insert)

    async def revoke_key(self, key_id: str, *, at_us: int) -> bool:
        """Revoke a live key; False when there is no such one."""

        def revoke(connection: sqlite3.Connection) -> bool:
            update = "UPDATE api_keys SET revoked_at_us = ? WHERE key_id = ? AND revoked_at_us IS NULL"
            return connection.execute(update, (at_us, key_id)).rowcount == 1

        return await self._transact(revoke)

    async def list_keys(self) -> Sequence[StoredKey]:
        """Return all keys, revoked ones included, by creation."""

        def select(connection: sqlite3.Connection) -> list[StoredKey]:
            rows = connection.execute(
                "SELECT key_id, name, tenant, sha256, hint, deployments, created_at_us, revoked_at_us"
                " FROM api_keys ORDER BY created_at_us, key_id"
            )
            return [_stored_key(row) for row in rows]

        return await self._read(select)

    # -------------------------------------------------------------------------------------------- overrides

    async def put_override(self, override: Override) -> None:
        """Make this the deployment's override."""

        def put(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO overrides (deployment, patch, base, author, reason, at_us) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (deployment) DO UPDATE SET patch = excluded.patch, base = excluded.base,"
                " author = excluded.author, reason = excluded.reason, at_us = excluded.at_us",
                astuple(override),
            )
            connection.execute(
                "INSERT INTO override_history (action, deployment, patch, base, author, reason, at_us)"
                " VALUES ('put', ?, ?, ?, ?, ?, ?)",
                astuple(override),
            )

        await self._transact(put)

    async def discard_override(self, deployment: str, *, author: str, reason: str, at_us: int) -> None:
        """Drop the deployment's override; without one nothing happens."""

        def discard(connection: sqlite3.Connection) -> None:
            if connection.execute("DELETE FROM overrides WHERE deployment = ?", (deployment,)).rowcount:
                connection.execute(
                    "INSERT INTO override_history (action, deployment, author, reason, at_us)"
                    " VALUES ('discard', ?, ?, ?, ?)",
                    (deployment, author, reason, at_us),
                )

        await self._transact(discard)

    async def list_overrides(self) -> Sequence[Override]:
        """Return the overrides in force, by deployment."""

        def select(connection: sqlite3.Connection) -> list[Override]:
            rows = connection.execute(
                "SELECT deployment, patch, base, author, reason, at_us FROM overrides ORDER BY deployment"
            )
            return [Override(*row) for row in rows]

        return await self._read(select)

    async def declared(self) -> str | None:
        """Return the configuration that was last applied, None before the first."""

        def select(connection: sqlite3.Connection) -> str | None:
            row = connection.execute("SELECT value FROM meta WHERE name = 'declared'").fetchone()
            return None if row is None else str(row[0])

        return await self._read(select)

    async def set_declared(self, text: str) -> None:
        """Remember the configuration that is being applied."""

        def put(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO meta (name, value) VALUES ('declared', ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (text,),
            )

        await self._transact(put)

    # -------------------------------------------------------------------------------------------- reports

    async def usage(self, query: UsageQuery) -> UsageReport:
        """Answer a usage query from what is durable."""
        return await self._read(lambda connection: read_usage(connection, query))

    async def replica_events(self, replica_id: str | None = None) -> Sequence[ReplicaTransition]:
        """Return the event log of one replica, or of all, by replica and sequence."""

        def select(connection: sqlite3.Connection) -> list[ReplicaTransition]:
            rows = connection.execute(
                f"SELECT {', '.join(INSERT_EVENT.columns)} FROM replica_events"  # noqa: S608 — names of our own
                " WHERE ? IS NULL OR replica_id = ? ORDER BY replica_id, sequence",
                (replica_id, replica_id),
            )
            events = []
            for row in rows:
                values = dict(zip(INSERT_EVENT.columns, row, strict=True))
                events.append(ReplicaTransition(**{**values, "is_final": bool(values["is_final"])}))
            return events

        return await self._read(select)

    async def replica_intervals(self, *, only_open: bool = False) -> Sequence[ReplicaInterval]:
        """Return state intervals by replica and sequence."""
        return await self._read(lambda connection: select_intervals(connection, only_open=only_open))

    # -------------------------------------------------------------------------------------------- recovery

    async def settle_interrupted(self, *, at_us: int) -> int:
        """Settle every open intent as `interrupted`; only at start-up, before the first `begin`."""
        return await self._transact(lambda connection: settle_interrupted(connection, at_us=at_us))

    async def last_sequences(self) -> dict[str, int]:
        """Return the last event's sequence of each replica with an open interval."""
        return await self._read(last_sequences)

    async def close_orphan_intervals(self, except_replicas: Sequence[str], *, at_us: int) -> Sequence[str]:
        """Close the open intervals of all replicas but these, with an event each; return the replicas closed."""
        kept = frozenset(except_replicas)
        return await self._transact(lambda connection: close_orphan_intervals(connection, kept, at_us=at_us))

    # -------------------------------------------------------------------------------------------- inner

    async def _transact(self, change: Callable[[sqlite3.Connection], _T]) -> _T:
        def job(connection: sqlite3.Connection) -> _T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = change(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        result: Any = await asyncio.shield(self._writer.put_job(job))
        return result  # type: ignore[no-any-return]

    async def _read(self, select: Callable[[sqlite3.Connection], _T]) -> _T:
        def read() -> _T:
            try:
                connection = open_reader(self._path)
                try:
                    return select(connection)
                finally:
                    connection.close()
            except sqlite3.Error as error:
                raise unavailable(error, self._path) from error

        return await asyncio.to_thread(read)


def _stored_key(row: tuple[Any, ...]) -> StoredKey:
    key_id, name, tenant, sha256, hint, deployments, created_at_us, revoked_at_us = row
    return StoredKey(key_id, name, tenant, sha256, hint, tuple(json.loads(deployments)), created_at_us, revoked_at_us)
