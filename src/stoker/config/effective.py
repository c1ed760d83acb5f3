"""What is declared and what is: the file, the runtime changes over it, and the three-way step to the next file.

Pure. A declaration is the plain JSON value that `loading.Loaded.declared` holds; it has no `null` inside a mapping.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from stoker.config.checks import DEDICATED_ONLY, SERVERLESS_ONLY
from stoker.config.document import Path, Problem, dotted, walk
from stoker.config.patches import merge_patch, same

Resolution = Literal["refuse", "keep", "discard"]

_ON_DISK_ONLY = ("command", "binary", "env", "url")
_REFERENCES = ("exec:", "file:", "env:")


@dataclass(frozen=True, slots=True)
class DeploymentPatch:
    """A runtime change of one deployment.

    Attributes:
        patch: RFC 7386 merge patch over the file's declaration of it; None deletes the deployment.
        base: the file's own declaration of it when the change was made; None: not declared there.
    """

    deployment: str
    patch: Any
    base: Any = None


@dataclass(frozen=True, slots=True)
class Change:
    """One leaf that differs; None stands for "not there"."""

    path: Path
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {_shown(self.before)} → {_shown(self.after)}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A field of a deployment that both the file and a runtime change have changed, differently.

    Attributes:
        base: its value in the file that was applied last; `file`: in the file now; `live`: what runs. None: not there.
    """

    path: Path
    base: Any
    file: Any
    live: Any

    def __str__(self) -> str:
        return (
            f"{dotted(self.path)}: applied {_shown(self.base)}, the file now says {_shown(self.file)}, "
            f"a runtime change says {_shown(self.live)}"
        )


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """What applying a file comes to.

    Attributes:
        changes: from what runs now to `effective`.
        conflicts: with `keep` and `discard` they are settled, and listed for the reader.
        is_refused: there are conflicts and nobody said how to settle them; nothing may be changed.
        effective: the declaration that runs afterwards.
        patches: the runtime changes that live on, based on the new file.
        dropped: deployments whose runtime change ends, because it was discarded or says nothing any more.
    """

    changes: tuple[Change, ...]
    conflicts: tuple[Conflict, ...]
    is_refused: bool
    effective: dict[str, Any]
    patches: tuple[DeploymentPatch, ...]
    dropped: tuple[str, ...]


def merge(declared: Mapping[str, Any], patches: Sequence[DeploymentPatch]) -> dict[str, Any]:
    """Return the declaration with runtime changes laid over it, in their order; `declared` is not changed."""
    effective = deepcopy(dict(declared))
    for change in patches:
        deployments = effective.setdefault("deployments", {})
        outcome = merge_patch(deployments.get(change.deployment), change.patch)
        if outcome is None:
            deployments.pop(change.deployment, None)
        else:
            deployments[change.deployment] = outcome
    return effective


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return every leaf that differs, sorted by path; lists whose items have names are compared by name."""
    return tuple(sorted(_diff((), before, after), key=lambda change: dotted(change.path)))


def plan_apply(
    base: Mapping[str, Any] | None,
    file: Mapping[str, Any],
    live_patches: Sequence[DeploymentPatch],
    *,
    resolution: Resolution = "refuse",
) -> ApplyPlan:
    """Plan the step from the file that was applied last to the file as it is now, under the runtime changes.

    1. A field that only the file changed follows the file.
    2. A field that only a runtime change touches keeps the runtime value.
    3. A field that both changed is a conflict, unless both come to the same value.

    Args:
        base: the declaration applied last; None before the first, when each change's own `base` takes its place.
        resolution: `keep` lets runtime changes win; `discard` ends *all* of them, so that the file alone holds.
    """
    conflicts = tuple(conflict for change in live_patches for conflict in _conflicts(base, file, change))
    live = merge(base if base is not None else file, live_patches)
    kept: list[DeploymentPatch] = []
    dropped: list[str] = []
    for change in live_patches:
        applied, declared = _applied(base, change), _deployment(file, change.deployment)
        if _is_orphan(applied, declared, change):
            patch = merge_patch(applied, change.patch)
        else:
            patch = _without_redundant(declared, change.patch)
        says_nothing = declared is None if patch is None else patch == {} and declared is not None
        if resolution == "discard" or says_nothing:
            dropped.append(change.deployment)
        else:
            kept.append(DeploymentPatch(change.deployment, patch, deepcopy(declared)))
    effective = merge(file, kept)
    is_refused = bool(conflicts) and resolution == "refuse"
    return ApplyPlan(diff(live, effective), conflicts, is_refused, effective, tuple(kept), tuple(dropped))


def tier_patch(tier: Literal["serverless", "dedicated"], **fields: Any) -> dict[str, Any]:
    """Return the patch that moves a deployment to `tier`, whatever it is now.

    Args:
        fields: what else to set, such as `replicas=2` or `max_replicas=4`.
    """
    foreign = SERVERLESS_ONLY if tier == "dedicated" else DEDICATED_ONLY
    return {**dict.fromkeys(foreign), "tier": tier, **fields}


def forbidden_in_patch(patch: Any) -> tuple[Problem, ...]:
    """Return what a runtime change may not hold: programs, their environment, addresses and references to secrets.

    They come from the file on disk only, so that whoever holds the admin token cannot run programs or read files.
    """
    engine = patch.get("engine") if isinstance(patch, Mapping) else None
    touched = [key for key in _ON_DISK_ONLY if isinstance(engine, Mapping) and key in engine]
    problems = [Problem(("engine", key), "this is set only in the configuration file on disk") for key in touched]
    for path, value in walk(patch) if isinstance(patch, Mapping) else ():
        if "secret" in path or (isinstance(value, str) and value.startswith(_REFERENCES)):
            problems.append(
                Problem(path, "secrets and references to them are set only in the configuration file on disk")
            )
    return tuple({problem.path: problem for problem in reversed(problems)}.values())


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _deployment(declared: Mapping[str, Any] | None, name: str) -> Any:
    deployments = declared.get("deployments") if declared is not None else None
    return deployments.get(name) if isinstance(deployments, Mapping) else None


def _by_name(value: Any) -> dict[str, Any] | None:
    """Return the items of a list by their `name`, or None when they have none of their own."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, Mapping) and "name" in item for item in value):
        return None
    found = {str(item["name"]): item for item in value}
    return found if len(found) == len(value) else None


def _diff(path: Path, before: Any, after: Any, *, is_deep: bool = False) -> Iterator[Change]:
    """Yield leaves that differ; when `is_deep`, what only one side has is taken apart too."""
    if is_deep and isinstance(before, Mapping) and after is None:
        after = {}
    if is_deep and isinstance(after, Mapping) and before is None:
        before = {}
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from _diff((*path, key), before.get(key), after.get(key), is_deep=is_deep)
        return
    if same(before, after):
        return
    one, other = _by_name(before), _by_name(after)
    if one and other and not is_deep and (changes := list(_diff(path, one, other))):
        yield from changes
    else:
        yield Change(path, before, after)


def _leaves(patch: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths that a patch touches."""
    if not isinstance(patch, Mapping):
        yield path
        return
    for key, value in patch.items():
        yield from _leaves(value, (*path, key))


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _applied(base: Mapping[str, Any] | None, change: DeploymentPatch) -> Any:
    return change.base if base is None else _deployment(base, change.deployment)


def _is_orphan(applied: Any, declared: Any, change: DeploymentPatch) -> bool:
    """Tell whether the file took away the deployment that a runtime change builds on."""
    return applied is not None and declared is None and change.patch is not None


def _conflicts(base: Mapping[str, Any] | None, file: Mapping[str, Any], change: DeploymentPatch) -> Iterator[Conflict]:
    applied, declared = _applied(base, change), _deployment(file, change.deployment)
    if same(applied, declared):
        return
    root: Path = ("deployments", change.deployment)
    if _is_orphan(applied, declared, change):
        yield Conflict(root, applied, None, merge_patch(applied, change.patch))
        return
    live = merge_patch(declared, change.patch)
    if live is None:
        if declared is not None:
            yield Conflict(root, applied, declared, None)
        return
    touched = tuple(_leaves(change.patch))
    seen: set[Path] = set()
    for moved in _diff((), applied, declared, is_deep=True):
        for leaf in touched:
            shorter = min(moved.path, leaf, key=len)
            is_same_place = moved.path[: len(shorter)] == leaf[: len(shorter)]
            if not is_same_place or shorter in seen or same(_at(declared, shorter), _at(live, shorter)):
                continue
            seen.add(shorter)
            yield Conflict((*root, *shorter), _at(applied, shorter), _at(declared, shorter), _at(live, shorter))


def _without_redundant(declared: Any, patch: Any) -> Any:
    """Drop from a patch what the file itself says now; removals stay, to hold when the file brings the field back."""
    if not isinstance(patch, Mapping) or not isinstance(declared, Mapping):
        return deepcopy(patch)
    kept: dict[str, Any] = {}
    for key, value in patch.items():
        if isinstance(value, Mapping) and isinstance(declared.get(key), Mapping):
            if inner := _without_redundant(declared[key], value):
                kept[key] = inner
        elif value is None or not same(declared.get(key), value):
            kept[key] = deepcopy(value)
    return kept
