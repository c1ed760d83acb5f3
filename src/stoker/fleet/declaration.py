"""The values that `Deployments` works on: a consistent table, its views, and what changing it may answer. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker.config.effective import ApplyPlan, Change, DeploymentPatch, forbidden_in_patch, merge
from stoker.config.effective import Conflict as FieldConflict
from stoker.config.loading import Loaded, validate
from stoker.config.settings import DeploymentSettings, Settings
from stoker.errors import Conflict, Forbidden
from stoker.ledger.records import Override

_RUNTIME_PARTS = ("models", "deployments")
"""What `apply` can change while the server runs; the rest of the file is read at its start."""
_ON_DISK_MEND = "set it in the configuration file and run `stoker apply`"


class EtagMismatch(Conflict):
    """The caller's ETag names an older state than the present one."""

    code = "etag_mismatch"


class ApplyRefused(Conflict):
    """The file and runtime changes disagree, and nobody said who wins.

    Args:
        conflicts: each field with its value in the file applied last, in the file now, and live.
    """

    code = "apply_conflict"

    def __init__(self, conflicts: tuple[FieldConflict, ...]) -> None:
        listed = "\n".join(str(conflict) for conflict in conflicts)
        super().__init__(
            f"{len(conflicts)} field(s) were changed both in the file and at run time:\n{listed}",
            mend="`stoker apply --keep` lets runtime changes win, `stoker apply --discard` ends all of them",
        )
        self.conflicts = conflicts


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes something, and why.

    Attributes:
        name: `cli`, `admin`, `autopilot`.
        reason: one clause for the history; may be empty.
    """

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment as it is now, without its status.

    Attributes:
        etag: changes exactly when the effective settings do.
        is_declared: the file that was applied last names it.
        override: the runtime change over the file, None without one.
    """

    name: str
    settings: DeploymentSettings
    etag: str
    is_declared: bool
    override: Override | None


@dataclass(frozen=True, slots=True)
class Drift:
    """How the file on disk and what runs differ.

    Attributes:
        changes: from the file as it is now to what runs; empty: no drift.
        unapplied: from the file that was applied last to the file as it is now.
        overrides: the runtime changes.
    """

    changes: tuple[Change, ...]
    unapplied: tuple[Change, ...]
    overrides: tuple[Override, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did, or would do.

    Attributes:
        is_dry_run: nothing was changed.
        at_next_start: changes in the file that a running server does not take up.
    """

    plan: ApplyPlan
    is_dry_run: bool
    at_next_start: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A consistent whole: what was applied last, the runtime changes over it, and what they come to."""

    applied: Mapping[str, Any]
    overrides: Mapping[str, Override]
    settings: Settings

    def declared(self, name: str) -> Any:
        return self.applied.get("deployments", {}).get(name)


def etag_of(settings: DeploymentSettings) -> str:
    """Return 16 hexadecimal digits that change with the settings. Pure."""
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checked(patch: Mapping[str, Any]) -> Mapping[str, Any]:
    if problems := forbidden_in_patch(patch):
        raise Forbidden("; ".join(problem.sentence(None) for problem in problems), mend=_ON_DISK_MEND)
    return patch


def patches_of(overrides: Mapping[str, Override]) -> list[DeploymentPatch]:
    return [DeploymentPatch(o.deployment, json.loads(o.patch), json.loads(o.base)) for o in overrides.values()]


def build(applied: Mapping[str, Any], overrides: Mapping[str, Override]) -> State:
    """Check the whole and return it. Keys are left out: they may name deployments that were deleted at run time.

    Raises:
        ConfigInvalid
    """
    effective = merge(applied, patches_of(overrides))
    effective.pop("keys", None)
    return State(applied, overrides, validate(effective))


def with_runtime_parts(file: Mapping[str, Any], applied: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file with the models and deployments of another one."""
    kept = {key: value for key, value in file.items() if key not in _RUNTIME_PARTS}
    return {**kept, **{key: applied[key] for key in _RUNTIME_PARTS if key in applied}}


def source_of(loaded: Loaded) -> dict[str, str | None]:
    return {"path": None if loaded.path is None else str(loaded.path.absolute()), "environment": loaded.environment}


def applied_text(loaded: Loaded, applied: Mapping[str, Any]) -> str:
    return json.dumps({"source": source_of(loaded), "declared": applied})
