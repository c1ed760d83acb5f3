"""The default model on this disk, for tests with a real engine. Touches files; the first call may use the network."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from stoker.config.builtin import BUILTIN_MODELS, DEFAULT_MODEL
from stoker.config.settings import ModelSettings
from stoker.models.files import ModelFile
from stoker.models.store import ModelStore, cache_dir


@lru_cache(maxsize=1)
def default_model() -> ModelFile:
    """Return the embedded model, verified, from the store of this machine. Works inside a running event loop too."""
    settings = ModelSettings.model_validate(BUILTIN_MODELS[DEFAULT_MODEL])

    def ensure() -> ModelFile:
        return asyncio.run(ModelStore(cache_dir()).ensure(DEFAULT_MODEL, settings))

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(ensure).result()


def default_model_path() -> Path:
    """Return the path of the embedded model's weights."""
    return default_model().path
