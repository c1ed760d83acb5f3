"""Writes one batch of rows in one transaction. Touches the SQLite connection that it is given."""

from __future__ import annotations

import sqlite3
from asyncio import Future
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from stoker.ledger.domain.intervals import move_interval
from stoker.ledger.records import ReplicaInterval, ReplicaTransition, RequestIntent, Settlement
from stoker.ledger.stores.statements import (
    CLOSE_INTERVAL,
    INSERT_ATTEMPT,
    INSERT_EVENT,
    INSERT_INTERVAL,
    INSERT_REQUEST,
    INSERT_SETTLEMENT,
    MAX_ROWS_PER_STATEMENT,
    Insert,
    Row,
    attempt_rows,
    event_row,
    interval_row,
    request_row,
    settlement_row,
)

Record = RequestIntent | Settlement | ReplicaTransition
Item = tuple[Record, "Future[None]"]

# What a single bad row can raise; anything else (disk full, I/O error, locked) concerns the whole batch.
ROW_FAULTS = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    OverflowError,
    TypeError,
    ValueError,
    AttributeError,
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that the database would not take, while the others of its batch were written."""

    item: Item
    fault: Exception


class _Uneven(Exception):
    """Some rows were there already, so the fast path cannot tell which attempts belong to new settlements."""


def write_batch(connection: sqlite3.Connection, items: Sequence[Item]) -> list[Refused]:
    """Make the rows durable in one transaction and return those that were refused.

    All rows go in a few many-row statements. Where one of them is at fault, everything is rolled back and written
    again row by row, each under a savepoint of its own.

    Raises:
        sqlite3.Error: nothing of the batch may be taken as stored.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        _write_together(connection, items)
        connection.execute("COMMIT")
    except (_Uneven, *ROW_FAULTS):
        connection.execute("ROLLBACK")
    else:
        return []
    connection.execute("BEGIN IMMEDIATE")
    refused = _write_singly(connection, items)
    connection.execute("COMMIT")
    return refused


def _write_together(connection: sqlite3.Connection, items: Sequence[Item]) -> None:
    # An intent was queued before its settlement, so all intents of a batch can go first.
    intents = [request_row(record) for record, _ in items if type(record) is RequestIntent]
    settlements = [record for record, _ in items if type(record) is Settlement]
    if intents:
        _insert_all(connection, INSERT_REQUEST, intents)
    if settlements:
        num_new = _insert_all(connection, INSERT_SETTLEMENT, [settlement_row(record) for record in settlements])
        if num_new != len(settlements):
            raise _Uneven
        _insert_all(connection, INSERT_ATTEMPT, list(chain.from_iterable(map(attempt_rows, settlements))))
    if len(intents) + len(settlements) < len(items):
        for record, _ in items:
            if type(record) is not RequestIntent and type(record) is not Settlement:
                _write_one(connection, record)


def _insert_all(connection: sqlite3.Connection, insert: Insert, rows: Sequence[Row]) -> int:
    num_new = 0
    for start in range(0, len(rows), MAX_ROWS_PER_STATEMENT):
        chunk = rows[start : start + MAX_ROWS_PER_STATEMENT]
        values = chunk[0] if len(chunk) == 1 else tuple(chain.from_iterable(chunk))
        num_new += connection.execute(insert.sql(len(chunk)), values).rowcount
    return num_new


def _write_singly(connection: sqlite3.Connection, items: Iterable[Item]) -> list[Refused]:
    refused = []
    for item in items:
        connection.execute("SAVEPOINT one_row")
        try:
            _write_one(connection, item[0])
        except ROW_FAULTS as fault:
            connection.execute("ROLLBACK TO one_row")
            refused.append(Refused(item, fault))
        connection.execute("RELEASE one_row")
    return refused


def _write_one(connection: sqlite3.Connection, record: Record) -> None:
    if isinstance(record, RequestIntent):
        connection.execute(INSERT_REQUEST.sql(1), request_row(record))
    elif isinstance(record, Settlement):
        # The foreign key refuses a settlement whose intent is not stored.
        if connection.execute(INSERT_SETTLEMENT.sql(1), settlement_row(record)).rowcount:
            connection.executemany(INSERT_ATTEMPT.sql(1), attempt_rows(record))
    elif isinstance(record, ReplicaTransition):
        write_transition(connection, record)
    else:
        raise TypeError(f"{type(record).__name__} is no record of the ledger")


def write_transition(connection: sqlite3.Connection, transition: ReplicaTransition) -> None:
    """Insert an event and, unless it was there already, move the replica's interval."""
    if not connection.execute(INSERT_EVENT.sql(1), event_row(transition)).rowcount:
        return
    closed, opened = move_interval(open_interval(connection, transition.replica_id), transition)
    if closed is not None:
        connection.execute(CLOSE_INTERVAL, (closed.ended_at_us, closed.replica_id, closed.sequence))
    if opened is not None:
        connection.execute(INSERT_INTERVAL.sql(1), interval_row(opened))


_SELECT_INTERVALS = f"SELECT {', '.join(INSERT_INTERVAL.columns)} FROM replica_intervals"  # noqa: S608


def open_interval(connection: sqlite3.Connection, replica_id: str) -> ReplicaInterval | None:
    """Return the interval that a replica is in, None when it holds nothing."""
    found: tuple[Any, ...] | None = connection.execute(
        f"{_SELECT_INTERVALS} WHERE replica_id = ? AND ended_at_us IS NULL", (replica_id,)
    ).fetchone()
    return None if found is None else ReplicaInterval(*found)


def select_intervals(connection: sqlite3.Connection, *, only_open: bool = False) -> list[ReplicaInterval]:
    """Return state intervals by replica and sequence."""
    where = " WHERE ended_at_us IS NULL" if only_open else ""
    rows = connection.execute(f"{_SELECT_INTERVALS}{where} ORDER BY replica_id, sequence")
    return [ReplicaInterval(*row) for row in rows]
