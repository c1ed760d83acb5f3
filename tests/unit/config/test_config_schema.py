"""The JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stoker.config.schema import json_schema
from stoker.config.settings import Settings


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def test_every_reference_resolves() -> None:
    schema = json_schema()
    references = {node["$ref"] for node in _nodes(schema) if isinstance(node.get("$ref"), str)}
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(schema["$defs"])


def test_durations_and_sizes_take_text_and_numbers() -> None:
    server = json_schema()["$defs"]["ServerSettings"]["properties"]
    assert {kind["type"] for kind in server["drain_timeout"]["anyOf"]} == {"number", "string"}
    assert {kind["type"] for kind in server["max_body"]["anyOf"]} == {"integer", "string"}
    keep_alive = json_schema()["$defs"]["DeploymentSettings"]["properties"]["keep_alive"]["anyOf"]
    assert {"const": "auto"} in keep_alive


def test_the_file_has_environments_and_overlays_require_nothing() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {*Settings.model_fields, "environments"}
    assert schema["$defs"]["DeploymentSettings"]["required"] == ["model"]
    overlay = schema["$defs"]["DeploymentSettingsOverlay"]
    assert "required" not in overlay
    assert {"type": "null"} in overlay["properties"]["replicas"]["anyOf"]
    assert schema["additionalProperties"] is False
    keys = schema["$defs"]["SettingsOverlay"]["properties"]["keys"]["anyOf"][0]
    assert keys["items"] == {"$ref": "#/$defs/KeySettings"}
