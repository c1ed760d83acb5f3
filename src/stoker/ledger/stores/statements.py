"""The statements of the data path as SQL text, and the rows that they take. Pure.

The text is what SQLAlchemy Core makes of `schema` (a test compares them), written out because importing SQLAlchemy
costs some 0.3 s at every start. One statement inserts many rows: `sqlite3` gives the interpreter lock away at every
step, and a step a row would let a busy event loop hold up each row of a batch by a switch interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import Any

from stoker.ledger.records import Attempt, ReplicaInterval, ReplicaTransition, RequestIntent, Settlement

MAX_ROWS_PER_STATEMENT = 32
"""Every count up to it becomes a prepared statement of its own; 32 keeps all of them near 1 MB."""


@dataclass(frozen=True, slots=True)
class Insert:
    """An idempotent insert: a row whose key exists is skipped.

    Attributes:
        columns: in the order of a row's values.
    """

    table: str
    columns: tuple[str, ...]

    def sql(self, num_rows: int) -> str:
        """Return the statement for so many rows, 1 … `MAX_ROWS_PER_STATEMENT`."""
        return _insert_sql(self.table, self.columns, num_rows)


@cache
def _insert_sql(table: str, columns: tuple[str, ...], num_rows: int) -> str:
    values = ", ".join([f"({', '.join('?' * len(columns))})"] * num_rows)
    # Names come from the records' own fields, never from input.
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {values} ON CONFLICT DO NOTHING"  # noqa: S608


def _names(record: type[Any], *, but: str = "") -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name != but)


INSERT_REQUEST = Insert("requests", _names(RequestIntent))
INSERT_SETTLEMENT = Insert("settlements", _names(Settlement, but="attempts"))
INSERT_ATTEMPT = Insert("attempts", ("request_id", *_names(Attempt)))
INSERT_EVENT = Insert("replica_events", _names(ReplicaTransition))
INSERT_INTERVAL = Insert("replica_intervals", _names(ReplicaInterval))
CLOSE_INTERVAL = "UPDATE replica_intervals SET ended_at_us = ? WHERE replica_id = ? AND sequence = ?"

Row = tuple[Any, ...]
request_row: Callable[[RequestIntent], Row] = attrgetter(*INSERT_REQUEST.columns)
settlement_row: Callable[[Settlement], Row] = attrgetter(*INSERT_SETTLEMENT.columns)
event_row: Callable[[ReplicaTransition], Row] = attrgetter(*INSERT_EVENT.columns)
interval_row: Callable[[ReplicaInterval], Row] = attrgetter(*INSERT_INTERVAL.columns)
_attempt_values: Callable[[Attempt], Row] = attrgetter(*INSERT_ATTEMPT.columns[1:])


def attempt_rows(settlement: Settlement) -> list[Row]:
    """Return one row for each attempt."""
    return [(settlement.request_id, *_attempt_values(attempt)) for attempt in settlement.attempts]
