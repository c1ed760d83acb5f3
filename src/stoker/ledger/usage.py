"""Adds up a usage report inside the database. Touches the SQLite connection that it is given, and only reads.

`domain.reports` says what the figures mean; a contract test compares the two on the same rows.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from typing import Any

from stoker.ledger.domain.reports import (
    US_PER_DAY,
    Dimension,
    Spread,
    UsageQuery,
    UsageReport,
    UsageRow,
    capacity_rows,
    day_text,
)
from stoker.ledger.records import ReplicaInterval
from stoker.ledger.stores.statements import INSERT_INTERVAL

_Group = tuple[Any, ...]

_EXPRESSIONS: dict[Dimension, str] = {
    "deployment": "r.deployment",
    "key": "r.key_id",
    "tenant": "r.tenant",
    "tier": "r.tier",
    "day": f"r.arrived_at_us / {US_PER_DAY}",
}
_SETTLED = (
    "FROM requests r JOIN settlements s ON s.request_id = r.request_id"
    " WHERE r.arrived_at_us >= :since AND r.arrived_at_us < :until"
)
_SPREADS = {
    "queue_s": "s.queue_s IS NOT NULL",
    "cold_start_s": "s.cold_start_s > 0",
    "gateway_ttft_s": "s.gateway_ttft_s IS NOT NULL",
    "itl_mean_s": "s.itl_mean_s IS NOT NULL",
}
# An attempt runs from holding its slot to its end; the part that an earlier one of its replica covers counts once.
_BUSY = """
WITH runs AS (
    SELECT r.deployment, a.tier, a.replica_id,
           max(a.started_at_us + CAST(round(a.queue_s * 1000000) AS INTEGER), :since) AS start_us,
           min(a.ended_at_us, :until) AS end_us
    FROM requests r JOIN attempts a ON a.request_id = r.request_id
    WHERE r.arrived_at_us >= :since AND r.arrived_at_us < :until AND a.replica_id IS NOT NULL
), ordered AS (
    SELECT deployment, tier, start_us, end_us,
           max(end_us) OVER (
               PARTITION BY deployment, tier, replica_id ORDER BY start_us, end_us
               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
           ) AS covered_to_us
    FROM runs
)
SELECT deployment, tier, sum(max(0, end_us - max(start_us, coalesce(covered_to_us, start_us))))
FROM ordered GROUP BY deployment, tier
"""


def read_usage(connection: sqlite3.Connection, query: UsageQuery) -> UsageReport:
    """Answer a query from one snapshot of the ledger."""
    connection.execute("BEGIN")
    try:
        window = {"since": query.since_us, "until": query.until_us}
        tokens: dict[tuple[str, str], int] = {}
        for deployment, tier, output_tokens in connection.execute(
            f"SELECT r.deployment, r.tier, coalesce(sum(s.output_tokens), 0) {_SETTLED} GROUP BY 1, 2", window
        ):
            tokens[deployment, tier] = output_tokens
        busy_us = {(deployment, tier): us for deployment, tier, us in connection.execute(_BUSY, window)}
        return UsageReport(
            query=query,
            rows=_rows(connection, query, window),
            capacity=capacity_rows(query, _intervals(connection, window), busy_us=busy_us, output_tokens=tokens),
        )
    finally:
        connection.execute("ROLLBACK")


def _intervals(connection: sqlite3.Connection, window: dict[str, int]) -> list[ReplicaInterval]:
    rows = connection.execute(
        f"SELECT {', '.join(INSERT_INTERVAL.columns)} FROM replica_intervals"  # noqa: S608 — names of our own
        " WHERE (ended_at_us > :since OR ended_at_us IS NULL) AND started_at_us < :until",
        window,
    )
    return [ReplicaInterval(*row) for row in rows]


def _rows(connection: sqlite3.Connection, query: UsageQuery, window: dict[str, int]) -> tuple[UsageRow, ...]:
    # Only names from `_EXPRESSIONS` and `_SPREADS` become SQL text; an unknown dimension is a KeyError here.
    keys = [_EXPRESSIONS[dimension] for dimension in query.group_by]
    group_columns = "".join(f"{key}, " for key in keys)
    group_by = f"GROUP BY {', '.join(keys)}" if keys else ""
    num_keys = len(keys)

    outcomes: dict[_Group, dict[str, int]] = defaultdict(dict)
    by_outcome = ", ".join([*keys, "s.outcome"])
    for row in connection.execute(
        f"SELECT {group_columns} s.outcome, count(*) {_SETTLED} GROUP BY {by_outcome} ORDER BY s.outcome", window
    ):
        outcomes[row[:num_keys]][row[num_keys]] = row[num_keys + 1]
    spreads = {name: _spreads(connection, name, keys, window) for name in _SPREADS}

    totals = connection.execute(
        f"SELECT {group_columns} count(*), count(*) - count(s.request_id), coalesce(sum(s.input_tokens), 0),"  # noqa: S608
        " coalesce(sum(s.output_tokens), 0), coalesce(sum(s.cached_input_tokens), 0),"
        " coalesce(sum(s.has_exact_usage), 0), coalesce(sum(s.price_nanousd), 0),"
        " count(s.request_id) - count(s.price_nanousd), count(CASE WHEN s.cold_start_s > 0 THEN 1 END),"
        " min(r.arrived_at_us), max(s.settled_at_us)"
        " FROM requests r LEFT JOIN settlements s ON s.request_id = r.request_id"
        f" WHERE r.arrived_at_us >= :since AND r.arrived_at_us < :until {group_by} HAVING count(*) > 0",
        window,
    )
    nothing = Spread(None, None)
    rows = []
    for row in totals:
        group, figures = row[:num_keys], row[num_keys:]
        rows.append(
            UsageRow(
                group=_group_text(query, group),
                num_requests=figures[0],
                num_open=figures[1],
                outcomes=outcomes.get(group, {}),
                input_tokens=figures[2],
                output_tokens=figures[3],
                cached_input_tokens=figures[4],
                num_exact_usage=figures[5],
                price_nanousd=figures[6],
                num_unpriced=figures[7],
                num_cold_starts=figures[8],
                first_arrived_at_us=figures[9],
                last_settled_at_us=figures[10],
                **{name: by_group.get(group, nothing) for name, by_group in spreads.items()},
            )
        )
    return tuple(sorted(rows, key=lambda usage_row: usage_row.group))


def _spreads(
    connection: sqlite3.Connection, name: str, keys: list[str], window: dict[str, int]
) -> dict[_Group, Spread]:
    names = [f"k{i}" for i in range(len(keys))]
    selected = "".join(f"{key} AS {as_name}, " for key, as_name in zip(keys, names, strict=True))
    listed = "".join(f"{as_name}, " for as_name in names)
    partition = f"PARTITION BY {', '.join(names)}" if names else ""
    group_by = f"GROUP BY {', '.join(names)}" if names else "HAVING count(*) > 0"
    # Nearest rank p is the least value whose rank · 100 reaches p · count.
    rows = connection.execute(
        f"WITH measured AS (SELECT {selected} s.{name} AS value {_SETTLED} AND {_SPREADS[name]}),"  # noqa: S608
        f" ranked AS (SELECT {listed} value, row_number() OVER ({partition} ORDER BY value) AS place,"
        f" count(*) OVER ({partition}) AS size FROM measured)"
        f" SELECT {listed} min(CASE WHEN place * 100 >= 50 * size THEN value END),"
        f" min(CASE WHEN place * 100 >= 99 * size THEN value END) FROM ranked {group_by}",
        window,
    )
    return {row[: len(keys)]: Spread(*row[len(keys) :]) for row in rows}


def _group_text(query: UsageQuery, group: _Group) -> tuple[str, ...]:
    return tuple(
        day_text(value) if dimension == "day" else str(value)
        for dimension, value in zip(query.group_by, group, strict=True)
    )
