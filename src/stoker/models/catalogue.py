"""Models that `stoker deploy` offers: built-in ones and those of `stoker.yaml`, each with a profile. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stoker.config.builtin import BUILTIN_MODELS
from stoker.config.settings import ModelSettings

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model to choose.

    Attributes:
        sha256: None when it is not known before the first download, which then fixes it.
        memory_bytes: about what one replica with `profile` needs, None when unknown; the exact need is read from the
            file once it is here.
        profile: the part of a deployment's declaration that suits this model.
        is_builtin: False for those that only the configuration names.
    """

    name: str
    source: str
    sha256: str | None
    licence: str | None
    memory_bytes: int | None
    summary: str
    profile: Mapping[str, Any] = field(default_factory=dict)
    is_builtin: bool = True

    def deployment(self, **fields: Any) -> dict[str, Any]:
        """Return a deployment's declaration: this model, its profile, and `fields` over both."""
        return {"model": self.name, **{key: dict(value) for key, value in self.profile.items()}, **fields}


# name → (memory in bytes, summary, profile). Memory is weights + KV cache of all slots + about 150 MiB for the engine.
_PROFILES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "smollm2-135m": (
        400 * _MIB,
        "135M chat model that comes with Stoker: weak, but real, and quick on any processor",
        {"engine": {"context_tokens": 2048, "slots": 4}},
    ),
    "qwen2.5-0.5b": (
        800 * _MIB,
        "0.5B chat model; checksum fixed by the first download",
        {"engine": {"context_tokens": 4096, "slots": 2}},
    ),
    "qwen2.5-1.5b": (
        1500 * _MIB,
        "1.5B chat model; checksum fixed by the first download",
        {"engine": {"context_tokens": 4096, "slots": 2}},
    ),
    "nomic-embed-text-v1.5": (
        500 * _MIB,
        "embeddings of 768 numbers; checksum fixed by the first download",
        {"engine": {"context_tokens": 2048, "slots": 4, "pooling": "mean"}},
    ),
}


def catalogue(models: Mapping[str, ModelSettings] | None = None) -> dict[str, CatalogueEntry]:
    """Return what can be deployed, by name; an entry of the configuration takes the place of a built-in namesake.

    Args:
        models: `Settings.models`.
    """
    entries: dict[str, CatalogueEntry] = {}
    for name, declared in BUILTIN_MODELS.items():
        memory_bytes, summary, profile = _PROFILES[name]
        entries[name] = CatalogueEntry(
            name, declared["source"], declared.get("sha256"), declared.get("licence"), memory_bytes, summary, profile
        )
    for name, settings in (models or {}).items():
        builtin = entries.get(name)
        is_same = builtin is not None and builtin.source == settings.source
        if builtin is not None and is_same and settings.sha256 in {None, builtin.sha256} and settings.memory is None:
            continue
        own_profile = builtin.profile if builtin is not None and is_same else {}
        summary = "from the configuration file"
        entries[name] = CatalogueEntry(
            name,
            settings.source,
            settings.sha256,
            settings.licence,
            settings.memory,
            summary,
            own_profile,
            is_builtin=False,
        )
    return entries
