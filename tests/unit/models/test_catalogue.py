"""What can be deployed."""

from __future__ import annotations

from stoker.config.loading import validate
from stoker.config.settings import ModelSettings
from stoker.models.catalogue import catalogue


def test_every_entry_makes_a_valid_deployment() -> None:
    entries = catalogue()
    declared = {"deployments": {name: entry.deployment(max_replicas=2) for name, entry in entries.items()}}
    assert set(validate(declared).models) == set(entries)


def test_the_default_model_is_pinned_and_the_others_say_that_they_are_not() -> None:
    for name, entry in catalogue().items():
        assert entry.licence
        assert entry.memory_bytes
        assert (entry.sha256 is not None) == (name == "smollm2-135m")
        assert (entry.sha256 is not None) != ("checksum" in entry.summary)


def test_the_configuration_adds_entries_and_pins_built_in_ones() -> None:
    source = catalogue()["qwen2.5-0.5b"].source
    entries = catalogue(
        {"mine": ModelSettings(source="file:///m.gguf"), "qwen2.5-0.5b": ModelSettings(source=source, sha256="0" * 64)}
    )
    assert not entries["mine"].is_builtin
    assert entries["qwen2.5-0.5b"].sha256 == "0" * 64
    assert entries["qwen2.5-0.5b"].profile == catalogue()["qwen2.5-0.5b"].profile
