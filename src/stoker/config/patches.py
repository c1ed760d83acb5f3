"""RFC 7386 merge patches: apply one, and make the one that leads from a value to another. Pure.

In these values `null` says "absent", so no value that takes part holds a `null` inside a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` with `patch` laid over it; neither is changed and nothing is shared with either.

    Source: RFC 7386 §2.
    """
    if not isinstance(patch, Mapping):
        return deepcopy(patch)
    merged: dict[str, Any] = deepcopy(dict(target)) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def make_patch(source: Any, target: Any) -> Any:
    """Return the least patch for which `merge_patch(source, patch) == target`.

    Args:
        source, target: JSON values without `null` inside mappings; `target` as a whole may be None (delete).
    """
    if not isinstance(target, Mapping):
        return deepcopy(target)
    if not isinstance(source, Mapping):
        source = {}
    patch: dict[str, Any] = {key: None for key in source if key not in target}
    for key, value in target.items():
        if key not in source or not same(source[key], value):
            patch[key] = make_patch(source.get(key), value)
    return patch


def same(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal, `1` and `true` being different (Python says they are the same)."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
