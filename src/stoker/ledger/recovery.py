"""Puts right at start-up what a dead server left open. Touches the SQLite connection that it is given."""

from __future__ import annotations

import sqlite3

from stoker.ledger.domain.intervals import orphan_transition
from stoker.ledger.stores.batch import select_intervals, write_transition

# All requests up to this number are settled, so a start looks at those of the last run only.
_SETTLED_UP_TO = "settled_up_to"


def settle_interrupted(connection: sqlite3.Connection, *, at_us: int) -> int:
    """Settle every open intent as `interrupted`, without tokens, times or price; return how many there were.

    Must run before the first intent of a new server, which it could not tell from an old one.
    """
    found = connection.execute("SELECT value FROM meta WHERE name = ?", (_SETTLED_UP_TO,)).fetchone()
    settled_up_to = 0 if found is None else int(found[0])
    num_settled = connection.execute(
        "INSERT INTO settlements (request_id, settled_at_us, outcome, has_exact_usage, error_code)"
        " SELECT request_id, max(?, arrived_at_us), 'interrupted', 0, 'interrupted' FROM requests"
        " WHERE number > ? AND NOT EXISTS"
        " (SELECT 1 FROM settlements WHERE settlements.request_id = requests.request_id)",
        (at_us, settled_up_to),
    ).rowcount
    connection.execute(
        "INSERT INTO meta (name, value) SELECT ?, coalesce(max(number), 0) FROM requests WHERE true"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_SETTLED_UP_TO,),
    )
    return num_settled


def last_sequences(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the last event's sequence of each replica with an open interval."""
    rows = connection.execute(
        "SELECT replica_id, max(sequence) FROM replica_events"
        " WHERE replica_id IN (SELECT replica_id FROM replica_intervals WHERE ended_at_us IS NULL)"
        " GROUP BY replica_id"
    )
    return dict(rows.fetchall())


def close_orphan_intervals(connection: sqlite3.Connection, except_replicas: frozenset[str], *, at_us: int) -> list[str]:
    """Close the open intervals of all replicas but `except_replicas`, each with an event of its own.

    Returns:
        The replicas whose interval was closed.
    """
    sequences = last_sequences(connection)
    orphans = [i for i in select_intervals(connection, only_open=True) if i.replica_id not in except_replicas]
    for orphan in orphans:
        sequence = sequences.get(orphan.replica_id, orphan.sequence) + 1
        write_transition(connection, orphan_transition(orphan, sequence=sequence, at_us=at_us))
    return [orphan.replica_id for orphan in orphans]
