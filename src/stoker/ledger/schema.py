"""The ledger's tables, once for every dialect. Pure.

Times are integer microseconds since the epoch, money is integer nano-USD, ids are text. Requests and settlements are
two append-only tables: a request without a settlement is open. Only an interval's end is ever written later.

Importing this module imports SQLAlchemy (some 0.3 s of CPU), so the running server never does: the statements of the
data path stand in `stores/statements.py`, and a test holds them to these tables.
"""

from __future__ import annotations

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

# STRICT tables of SQLite know INTEGER, REAL, TEXT and BLOB only.
Int64 = BigInteger().with_variant(Integer(), "sqlite")
Float64: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")
Flag = Integer()

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("name", name="pk_meta"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

requests = Table(
    "requests",
    metadata,
    # Grows with every intent, so that recovery looks only at those of the last run.
    Column("number", Int64, Identity(), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("arrived_at_us", Int64, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("surface", Text, nullable=False),
    Column("is_stream", Flag, nullable=False),
    Column("max_output_tokens", Int64),
    PrimaryKeyConstraint("number", name="pk_requests"),
    UniqueConstraint("request_id", name="uq_requests_request_id"),
    sqlite_strict=True,
)
Index("ix_requests_arrived_at_us", requests.c.arrived_at_us)

settlements = Table(
    "settlements",
    metadata,
    Column("request_id", Text, ForeignKey("requests.request_id", name="fk_settlements_request_id"), nullable=False),
    Column("settled_at_us", Int64, nullable=False),
    Column("outcome", Text, nullable=False),
    # NULL where only recovery knows that the request ended.
    Column("status", Int64),
    Column("input_tokens", Int64),
    Column("output_tokens", Int64),
    Column("cached_input_tokens", Int64),
    Column("has_exact_usage", Flag, nullable=False),
    Column("queue_s", Float64),
    Column("cold_start_s", Float64),
    Column("gateway_ttft_s", Float64),
    Column("itl_mean_s", Float64),
    Column("duration_s", Float64),
    Column("price_nanousd", Int64),
    Column("error_code", Text),
    PrimaryKeyConstraint("request_id", name="pk_settlements"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

attempts = Table(
    "attempts",
    metadata,
    Column("request_id", Text, nullable=False),
    Column("number", Int64, nullable=False),
    Column("replica_id", Text),
    Column("tier", Text, nullable=False),
    Column("started_at_us", Int64, nullable=False),
    Column("ended_at_us", Int64, nullable=False),
    Column("queue_s", Float64, nullable=False),
    Column("cold_start_s", Float64, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error_code", Text),
    PrimaryKeyConstraint("request_id", "number", name="pk_attempts"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

replica_events = Table(
    "replica_events",
    metadata,
    Column("replica_id", Text, nullable=False),
    Column("sequence", Int64, nullable=False),
    Column("at_us", Int64, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("from_status", Text, nullable=False),
    Column("to_status", Text, nullable=False),
    Column("is_final", Flag, nullable=False),
    Column("reason", Text, nullable=False),
    Column("memory_bytes", Int64, nullable=False),
    Column("cores", Float64, nullable=False),
    Column("gpus", Int64, nullable=False),
    PrimaryKeyConstraint("replica_id", "sequence", name="pk_replica_events"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
Index("ix_replica_events_at_us", replica_events.c.at_us)

replica_intervals = Table(
    "replica_intervals",
    metadata,
    Column("replica_id", Text, nullable=False),
    # The sequence of the event that opened it.
    Column("sequence", Int64, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at_us", Int64, nullable=False),
    Column("ended_at_us", Int64),
    Column("memory_bytes", Int64, nullable=False),
    Column("cores", Float64, nullable=False),
    Column("gpus", Int64, nullable=False),
    PrimaryKeyConstraint("replica_id", "sequence", name="pk_replica_intervals"),
    CheckConstraint("ended_at_us IS NULL OR ended_at_us >= started_at_us", name="ck_replica_intervals_order"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
Index(
    "ix_replica_intervals_open",
    replica_intervals.c.replica_id,
    unique=True,
    sqlite_where=replica_intervals.c.ended_at_us.is_(None),
    postgresql_where=replica_intervals.c.ended_at_us.is_(None),
)
Index("ix_replica_intervals_ended_at_us", replica_intervals.c.ended_at_us)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("hint", Text, nullable=False),
    # JSON array of names.
    Column("deployments", Text, nullable=False),
    Column("created_at_us", Int64, nullable=False),
    Column("revoked_at_us", Int64),
    PrimaryKeyConstraint("key_id", name="pk_api_keys"),
    UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

overrides = Table(
    "overrides",
    metadata,
    Column("deployment", Text, nullable=False),
    Column("patch", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at_us", Int64, nullable=False),
    PrimaryKeyConstraint("deployment", name="pk_overrides"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

override_history = Table(
    "override_history",
    metadata,
    Column("number", Int64, Identity(), nullable=False),
    Column("action", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    # NULL where the override was discarded.
    Column("patch", Text),
    Column("base", Text),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at_us", Int64, nullable=False),
    PrimaryKeyConstraint("number", name="pk_override_history"),
    CheckConstraint("action IN ('put', 'discard')", name="ck_override_history_action"),
    sqlite_strict=True,
)
