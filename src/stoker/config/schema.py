"""The JSON Schema of `stoker.yaml`, for editors. Pure."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from stoker.config.settings import Settings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OVERLAY = "Overlay"
_REFERENCE = "#/$defs/"


def json_schema() -> dict[str, Any]:
    """Return the schema of the whole file, `environments` included; durations and sizes take text and numbers.

    An overlay takes the same keys as the file, none of them required, and `null` to take a key away.
    """
    schema: dict[str, Any] = Settings.model_json_schema(mode="validation")
    definitions: dict[str, Any] = schema.pop("$defs", {})
    overlays = {f"{name}{_OVERLAY}": _overlay(definition) for name, definition in definitions.items()}
    overlays[f"Settings{_OVERLAY}"] = _overlay(schema)
    for name in ("description", "title"):
        schema.pop(name, None)
    schema["properties"]["environments"] = {
        "description": "name → what differs there; chosen with --env",
        "type": "object",
        "additionalProperties": {"anyOf": [{"$ref": f"{_REFERENCE}Settings{_OVERLAY}"}, {"type": "null"}]},
    }
    return {"$schema": _DIALECT, "title": "stoker.yaml", **schema, "$defs": {**definitions, **overlays}}


def _overlay(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an object's schema in which nothing is required and `null` is allowed everywhere."""
    copy: dict[str, Any] = _renamed(deepcopy(definition))
    copy.pop("required", None)
    for name, value in (copy.get("properties") or {}).items():
        value.pop("default", None)
        copy["properties"][name] = {"anyOf": [value, {"type": "null"}]}
        items = value.get("additionalProperties")
        if isinstance(items, dict):
            value["additionalProperties"] = {"anyOf": [items, {"type": "null"}]}
    return copy


def _renamed(node: Any, *, is_in_list: bool = False) -> Any:
    """Point references at overlays; items of lists are replaced whole, so theirs stay."""
    if isinstance(node, dict):
        renamed: dict[str, Any] = {}
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str) and not is_in_list:
                renamed[key] = f"{value}{_OVERLAY}"
            else:
                renamed[key] = _renamed(value, is_in_list=is_in_list or key == "items")
        return renamed
    if isinstance(node, list):
        return [_renamed(item, is_in_list=is_in_list) for item in node]
    return node
