"""What `/admin` shows, as plain JSON values with units in their names. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from stoker.admin.envelope import change_json, conflict_json
from stoker.config.settings import DeploymentSettings
from stoker.fleet.control import DeploymentSnapshot, FleetSnapshot
from stoker.fleet.declaration import Applied, DeploymentView, Drift
from stoker.ledger.domain.reports import CapacityRow, UsageReport, UsageRow
from stoker.ledger.records import Override, StoredKey
from stoker.models.catalogue import CatalogueEntry
from stoker.models.fetching import ProgressReport
from stoker.models.store import StoredModel
from stoker.money import format_usd

_HIDDEN = "(set in the configuration file)"


def time_json(at_us: int | None) -> str | None:
    """Write microseconds since the epoch as ISO 8601, UTC."""
    return None if at_us is None else datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="milliseconds")


def settings_json(settings: DeploymentSettings) -> dict[str, Any]:
    """Write settings as `stoker.yaml` names them, in seconds and bytes; the engine's environment may hold secrets."""
    value: dict[str, Any] = settings.model_dump(mode="json")
    value["engine"]["env"] = dict.fromkeys(value["engine"]["env"], _HIDDEN)
    return value


def override_json(override: Override) -> dict[str, Any]:
    """Write a runtime change with its author, time and reason."""
    return {
        "deployment": override.deployment,
        "patch": json.loads(override.patch),
        "author": override.author,
        "reason": override.reason,
        "at": time_json(override.at_us),
    }


def deployment_json(view: DeploymentView, snapshot: DeploymentSnapshot | None) -> dict[str, Any]:
    """Write one deployment: what it shall be, and how it is."""
    return {
        "name": view.name,
        "etag": view.etag,
        "is_declared": view.is_declared,
        "override": None if view.override is None else override_json(view.override),
        "settings": settings_json(view.settings),
        "status": None if snapshot is None else _without_replicas(snapshot),
    }


def replicas_json(snapshot: FleetSnapshot) -> list[dict[str, Any]]:
    """Write all replicas, by deployment."""
    return [asdict(replica) for deployment in snapshot.deployments for replica in deployment.replicas]


def status_json(snapshot: FleetSnapshot) -> dict[str, Any]:
    """Write the fleet's part of `status`."""
    return {
        "is_draining": snapshot.is_draining,
        "keeper_problem": snapshot.keeper_problem,
        "node": asdict(snapshot.node),
        "deployments": [_without_replicas(each) for each in snapshot.deployments],
    }


def progress_json(
    name: str, model: str, snapshot: DeploymentSnapshot | None, fetch: ProgressReport | None
) -> dict[str, Any]:
    """Write how far a deployment is on its way to a live endpoint.

    `is_live`: a request sent now will be answered, by a ready replica or by waking one.
    """
    stage = "fetching" if fetch is not None else "accepted" if snapshot is None else snapshot.status
    return {
        "deployment": name,
        "model": model,
        "stage": stage,
        "is_live": stage in {"ready", "cold"},
        "is_failed": stage == "failed",
        "ready_replicas": 0 if snapshot is None else snapshot.ready_replicas,
        "wanted_replicas": 0 if snapshot is None else snapshot.wanted_replicas,
        "eta_s": None if snapshot is None else snapshot.eta_s,
        "learned_start_s": None if snapshot is None else snapshot.learned_start_s,
        "start_samples": 0 if snapshot is None else snapshot.start_samples,
        "last_error": None if snapshot is None else snapshot.last_error,
        "fetch": None if fetch is None else asdict(fetch),
    }


def key_json(key: StoredKey) -> dict[str, Any]:
    """Write a stored key; its secret is not known any more."""
    return {
        "key_id": key.key_id,
        "name": key.name,
        "tenant": key.tenant,
        "hint": f"…{key.hint}",
        "deployments": list(key.deployments),
        "created_at": time_json(key.created_at_us),
        "revoked_at": time_json(key.revoked_at_us),
        "origin": "store",
    }


def usage_json(report: UsageReport) -> dict[str, Any]:
    """Write a usage report; dollars as exact decimal text."""
    return {
        "since": time_json(report.query.since_us),
        "until": time_json(report.query.until_us),
        "by": list(report.query.group_by),
        "rows": [_usage_row_json(row, report.query.group_by) for row in report.rows],
        "capacity": [_capacity_json(row) for row in report.capacity],
    }


def models_json(
    entries: Mapping[str, CatalogueEntry], stored: Sequence[StoredModel], fetches: Mapping[str, ProgressReport]
) -> list[dict[str, Any]]:
    """Write what can be deployed, and which of it is on this disk."""
    by_source = {model.source: model for model in stored}
    listed = []
    for entry in entries.values():
        here = by_source.get(entry.source)
        fetch = fetches.get(entry.name)
        listed.append(
            {
                "name": entry.name,
                "source": entry.source,
                "sha256": entry.sha256 or (here.sha256 if here is not None else None),
                "licence": entry.licence,
                "memory_bytes": entry.memory_bytes,
                "summary": entry.summary,
                "profile": dict(entry.profile),
                "is_builtin": entry.is_builtin,
                "state": "absent" if here is None else here.state,
                "size_bytes": None if here is None else here.size_bytes,
                "fetch": None if fetch is None else asdict(fetch),
            }
        )
    return listed


def drift_json(drift: Drift, *, path: str | None) -> dict[str, Any]:
    """Write what the file says and what runs; in `changes`, `before` is the file and `after` what runs."""
    return {
        "path": path,
        "has_drift": bool(drift.changes),
        "changes": [change_json(change) for change in drift.changes],
        "unapplied": [change_json(change) for change in drift.unapplied],
        "overrides": [override_json(override) for override in drift.overrides],
    }


def applied_json(applied: Applied) -> dict[str, Any]:
    """Write what `apply` did, or would do."""
    plan = applied.plan
    return {
        "is_dry_run": applied.is_dry_run,
        "is_refused": plan.is_refused,
        "changes": [change_json(change) for change in plan.changes],
        "conflicts": [conflict_json(conflict) for conflict in plan.conflicts],
        "dropped": list(plan.dropped),
        "kept": [patch.deployment for patch in plan.patches],
        "at_next_start": [change_json(change) for change in applied.at_next_start],
    }


def _without_replicas(snapshot: DeploymentSnapshot) -> dict[str, Any]:
    value = asdict(snapshot)
    del value["replicas"]
    return value


def _usage_row_json(row: UsageRow, dimensions: Sequence[str]) -> dict[str, Any]:
    value = asdict(row)
    group = value.pop("group")
    return {
        **dict(zip(dimensions, group, strict=True)),
        **value,
        "price_usd": format_usd(row.price_nanousd),
        "output_tokens_per_s": row.output_tokens_per_s,
        "first_arrived_at": time_json(row.first_arrived_at_us),
        "last_settled_at": time_json(row.last_settled_at_us),
    }


def _capacity_json(row: CapacityRow) -> dict[str, Any]:
    return {
        **asdict(row),
        "utilisation_ratio": row.utilisation_ratio,
        "effective_output_tokens_per_s": row.effective_output_tokens_per_s,
    }
