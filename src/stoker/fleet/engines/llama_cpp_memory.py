"""What a llama.cpp replica needs, from the file's own metadata. Pure.

Source: llama.cpp `llama-kv-cache.cpp` (K and V: layers × KV heads × head size × tokens × bytes) and measured PSS of the
embedded default (docs/benchmarks.md) for the parts that no formula gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker.config.settings import DeploymentSettings
from stoker.fleet.ports import MemoryNeed
from stoker.models.files import ModelFile

_MIB = 2**20
_BYTES_PER_ELEMENT = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
_UBATCH_TOKENS = 512
_PROGRAM_BYTES = 40 * _MIB
"""Interpreter, engine code, HTTP threads and buffers."""
_TOKEN_BYTES = 600
"""What one entry of the vocabulary takes, with its merges and look-ups.

Calibration: SmolLM2-135M held 170 MiB with 512 tokens of context and 209 MiB with 2,048, prompts of that length
computed; these constants give 5–10 % more.
"""


def memory_need(settings: DeploymentSettings, model: ModelFile, *, context_tokens: int) -> MemoryNeed:
    """Return the memory of one replica with its arithmetic; `settings.memory` and `model` figures in bytes."""
    if settings.memory is not None:
        return MemoryNeed(settings.memory, f"declared memory {_mib(settings.memory)}")
    facts = model.metadata
    kv_bytes = _kv_cache_bytes(settings, facts, context_tokens)
    compute_bytes = _compute_bytes(settings, facts)
    overhead_bytes = _PROGRAM_BYTES + _TOKEN_BYTES * _vocabulary(facts)
    total = model.size_bytes + kv_bytes + compute_bytes + overhead_bytes
    slots = settings.engine.slots
    return MemoryNeed(
        total,
        f"weights {_mib(model.size_bytes)} + KV cache {_mib(kv_bytes)} ({context_tokens} tokens × {slots} "
        f"slot{'s' if slots > 1 else ''}) + compute {_mib(compute_bytes)} + overhead {_mib(overhead_bytes)} "
        f"= {_mib(total)}",
    )


def _kv_cache_bytes(settings: DeploymentSettings, facts: Mapping[str, Any], context: int) -> int:
    layers = _number(facts, "block_count", 32)
    width = _number(facts, "embedding_length", 4096)
    heads = _number(facts, "head_count", 32)
    kv_heads = _number(facts, "head_count_kv", heads)
    key_length = _number(facts, "key_length", width // max(1, heads))
    value_length = _number(facts, "value_length", key_length)
    args = settings.engine.args
    key_bytes = _BYTES_PER_ELEMENT.get(str(args.get("cache_type_k", "f16")).lower(), 2.0)
    value_bytes = _BYTES_PER_ELEMENT.get(str(args.get("cache_type_v", "f16")).lower(), 2.0)
    per_token = layers * kv_heads * (key_length * key_bytes + value_length * value_bytes)
    return int(per_token * context * settings.engine.slots)


def _compute_bytes(settings: DeploymentSettings, facts: Mapping[str, Any]) -> int:
    # The engine reserves the logits of a whole micro-batch, but touches those of one token a slot.
    ubatch = int(settings.engine.args.get("n_ubatch", _UBATCH_TOKENS))
    width = _number(facts, "embedding_length", 4096)
    return (16 * width * ubatch + _vocabulary(facts) * settings.engine.slots) * 4


def _vocabulary(facts: Mapping[str, Any]) -> int:
    return _number(facts, "vocabulary_size", 49_152)


def _number(facts: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = facts.get(name, otherwise)
    # Some architectures name a figure per layer; the largest is on the safe side.
    if isinstance(value, list | tuple):
        value = max((v for v in value if isinstance(v, int)), default=otherwise)
    return value if isinstance(value, int) and value > 0 else otherwise


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.0f} MiB"
