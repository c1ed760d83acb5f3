"""The first tables: requests, settlements, attempts, replicas, keys, overrides."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Float64: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("deployments", sa.Text(), nullable=False),
        sa.Column("created_at_us", Int64, nullable=False),
        sa.Column("revoked_at_us", Int64, nullable=True),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "attempts",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("number", Int64, nullable=False),
        sa.Column("replica_id", sa.Text(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("started_at_us", Int64, nullable=False),
        sa.Column("ended_at_us", Int64, nullable=False),
        sa.Column("queue_s", Float64, nullable=False),
        sa.Column("cold_start_s", Float64, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", "number", name="pk_attempts"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "override_history",
        sa.Column("number", Int64, sa.Identity(always=False), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("patch", sa.Text(), nullable=True),
        sa.Column("base", sa.Text(), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_us", Int64, nullable=False),
        sa.CheckConstraint("action IN ('put', 'discard')", name="ck_override_history_action"),
        sa.PrimaryKeyConstraint("number", name="pk_override_history"),
        sqlite_strict=True,
    )
    op.create_table(
        "overrides",
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("patch", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_us", Int64, nullable=False),
        sa.PrimaryKeyConstraint("deployment", name="pk_overrides"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "replica_events",
        sa.Column("replica_id", sa.Text(), nullable=False),
        sa.Column("sequence", Int64, nullable=False),
        sa.Column("at_us", Int64, nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("from_status", sa.Text(), nullable=False),
        sa.Column("to_status", sa.Text(), nullable=False),
        sa.Column("is_final", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("memory_bytes", Int64, nullable=False),
        sa.Column("cores", Float64, nullable=False),
        sa.Column("gpus", Int64, nullable=False),
        sa.PrimaryKeyConstraint("replica_id", "sequence", name="pk_replica_events"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_replica_events_at_us", "replica_events", ["at_us"], unique=False)
    op.create_table(
        "replica_intervals",
        sa.Column("replica_id", sa.Text(), nullable=False),
        sa.Column("sequence", Int64, nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at_us", Int64, nullable=False),
        sa.Column("ended_at_us", Int64, nullable=True),
        sa.Column("memory_bytes", Int64, nullable=False),
        sa.Column("cores", Float64, nullable=False),
        sa.Column("gpus", Int64, nullable=False),
        sa.CheckConstraint("ended_at_us IS NULL OR ended_at_us >= started_at_us", name="ck_replica_intervals_order"),
        sa.PrimaryKeyConstraint("replica_id", "sequence", name="pk_replica_intervals"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_replica_intervals_ended_at_us", "replica_intervals", ["ended_at_us"], unique=False)
    op.create_index(
        "ix_replica_intervals_open",
        "replica_intervals",
        ["replica_id"],
        unique=True,
        sqlite_where=sa.text("ended_at_us IS NULL"),
        postgresql_where=sa.text("ended_at_us IS NULL"),
    )
    op.create_table(
        "requests",
        sa.Column("number", Int64, sa.Identity(always=False), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("arrived_at_us", Int64, nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("surface", sa.Text(), nullable=False),
        sa.Column("is_stream", sa.Integer(), nullable=False),
        sa.Column("max_output_tokens", Int64, nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_requests"),
        sa.UniqueConstraint("request_id", name="uq_requests_request_id"),
        sqlite_strict=True,
    )
    op.create_index("ix_requests_arrived_at_us", "requests", ["arrived_at_us"], unique=False)
    op.create_table(
        "settlements",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("settled_at_us", Int64, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", Int64, nullable=True),
        sa.Column("input_tokens", Int64, nullable=True),
        sa.Column("output_tokens", Int64, nullable=True),
        sa.Column("cached_input_tokens", Int64, nullable=True),
        sa.Column("has_exact_usage", sa.Integer(), nullable=False),
        sa.Column("queue_s", Float64, nullable=True),
        sa.Column("cold_start_s", Float64, nullable=True),
        sa.Column("gateway_ttft_s", Float64, nullable=True),
        sa.Column("itl_mean_s", Float64, nullable=True),
        sa.Column("duration_s", Float64, nullable=True),
        sa.Column("price_nanousd", Int64, nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["request_id"], ["requests.request_id"], name="fk_settlements_request_id"),
        sa.PrimaryKeyConstraint("request_id", name="pk_settlements"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
